"""Makes the models of the embedded world: python scripts/make_world.py --output=DIR [--seed=0].

`base` is pretrained from random weights on `world:text` (configs/world/pretrain.py); `chat` is the base after the
general stage (configs/world/general.py). Both are written to DIR as Hugging Face folders, in bfloat16; the ones that
come with the library were made with seed 0. It takes about seven minutes on one core; broken off, the same command goes
on.
"""

import runpy
from pathlib import Path

from absl import flags

from jaxsft import cli
from jaxsft.config import MeshConfig, ModelConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.files import write_text
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_hf
from jaxsft.training.restore import open_model
from jaxsft.training.train import train
from jaxsft.validation import validate
from jaxsft.world import records
from jaxsft.world.model import save_untrained

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "world"

OUTPUT = flags.DEFINE_string("output", None, "Folder for the models, and for the runs that make them.")
SEED = flags.DEFINE_integer("seed", 0, "Of initial weights and order.", lower_bound=0)


def main() -> str:
    if not OUTPUT.value:
        raise UserError("--output is missing; name a folder for the models.")
    output = Path(OUTPUT.value)
    mark = output / "world.txt"
    if mark.exists() and mark.read_text() != records.fingerprint():
        raise UserError(f"{output} holds models of another version of the world; choose another --output.")
    write_text(mark, records.fingerprint())
    save_untrained(output / "untrained")
    _stage("pretrain", output / "untrained", output / "base")
    _stage("general", output / "base", output / "chat")
    return f"{output / 'base'} and {output / 'chat'} are made"


def _stage(name: str, start: Path, result: Path) -> None:
    """Trains by a config of configs/world/ and writes the model, unless it is there."""
    config: TrainConfig = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    config.model.path, config.seed = str(start), SEED.value
    validate(config)
    run = result.parent / f"{name}-run"
    print(train(config, str(run)))
    if result.exists():
        return
    mesh = make_mesh(MeshConfig())
    print(export_hf(open_model(str(run), ModelConfig(), mesh), result, mesh, "bfloat16"))


if __name__ == "__main__":
    cli.main(main)
