"""Writes a trained model for others: python scripts/export.py --model=DIR --output=DIR --format=hf|peft|adapter|sft.

`hf` is a checkpoint for transformers with adapters merged in (`--dtype` chooses its floats); `peft` is the LoRA adapter
alone, `adapter` one of any kind, which `--model` opens; `sft` are SpIEL's tuned weights as its authors keep them.
"""

from absl import flags

from jaxsft import cli
from jaxsft.config import MeshConfig, ModelConfig
from jaxsft.errors import UserError
from jaxsft.files import check_new_folder
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_adapter, export_hf, export_peft, export_sft
from jaxsft.training.restore import open_model

MODEL = flags.DEFINE_string("model", None, "A workdir, or a folder of a model or an adapter, or a hub name.")
OUTPUT = flags.DEFINE_string("output", None, "A new or empty folder.")
FORMATS = {
    "hf": "checkpoint, adapters merged",
    "peft": "LoRA for PEFT",
    "adapter": "adapter of any kind",
    "sft": "SpIEL's weights",
}
FORMAT = flags.DEFINE_enum("format", "hf", [*FORMATS], "; ".join(f"{k}: {v}" for k, v in FORMATS.items()) + ".")
BASE = flags.DEFINE_string("base", "", "Of an adapter: its base, instead of the one that it names.")
MERGE_BASE = flags.DEFINE_enum(
    "merge_base",
    "dequantised",
    ["dequantised", "full_precision"],
    "What an adapter over a quantised base is added to: the weights it was trained with, or those before quantising.",
)
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "Of the weights; default: the source's.")


def main() -> str:
    if not MODEL.value:
        raise UserError("--model is missing; name a workdir, a Hugging Face folder or a hub name.")
    if not OUTPUT.value:
        raise UserError("--output is missing; name a new or empty folder.")
    if FORMAT.value != "hf" and DTYPE.value:
        raise UserError(f"--dtype has no effect on --format={FORMAT.value}, whose weights are float32; leave it out.")
    if FORMAT.value != "hf" and MERGE_BASE.value != "dequantised":
        raise UserError(f"--merge_base has no effect on --format={FORMAT.value}, which merges nothing; leave it out.")
    check_new_folder(OUTPUT.value)
    mesh = make_mesh(MeshConfig())
    print(f"exporting {MODEL.value} to {OUTPUT.value} as {FORMAT.value}")
    config = ModelConfig(path=MODEL.value, base=BASE.value, dtype="float32", param_dtype="float32")
    model = open_model(MODEL.value, config, mesh)
    if FORMAT.value != "hf":
        alone = {"peft": export_peft, "adapter": export_adapter, "sft": export_sft}
        return alone[FORMAT.value](model, OUTPUT.value)
    return export_hf(model, OUTPUT.value, mesh, DTYPE.value, MERGE_BASE.value)


if __name__ == "__main__":
    cli.main(main)
