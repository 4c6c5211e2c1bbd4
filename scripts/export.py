"""Writes a trained model for others: python scripts/export.py --model=DIR --output=DIR --format=hf|peft [--dtype=...].

`hf` is a checkpoint for transformers with adapters merged in; `peft` is the LoRA adapter alone.
"""

from absl import flags

from jaxsft import cli
from jaxsft.config import MeshConfig, ModelConfig
from jaxsft.errors import UserError
from jaxsft.files import check_new_folder
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_hf, export_peft
from jaxsft.training.restore import open_model

MODEL = flags.DEFINE_string("model", None, "A workdir, or a Hugging Face folder or hub name.")
OUTPUT = flags.DEFINE_string("output", None, "A new or empty folder.")
FORMAT = flags.DEFINE_enum("format", "hf", ["hf", "peft"], "hf: checkpoint, adapters merged; peft: LoRA adapter.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "Of the weights; default: the source's.")


def main() -> str:
    if not MODEL.value:
        raise UserError("--model is missing; name a workdir, a Hugging Face folder or a hub name.")
    if not OUTPUT.value:
        raise UserError("--output is missing; name a new or empty folder.")
    if FORMAT.value == "peft" and DTYPE.value:
        raise UserError("--dtype has no effect on --format=peft, whose weights are float32; leave it out.")
    check_new_folder(OUTPUT.value)
    mesh = make_mesh(MeshConfig())
    print(f"exporting {MODEL.value} to {OUTPUT.value} as {FORMAT.value}")
    model = open_model(MODEL.value, ModelConfig(path=MODEL.value, dtype="float32", param_dtype="float32"), mesh)
    if FORMAT.value == "peft":
        return export_peft(model, OUTPUT.value)
    return export_hf(model, OUTPUT.value, mesh, DTYPE.value)


if __name__ == "__main__":
    cli.main(main)
