"""Does a job of several stages: python scripts/run.py --config=configs/recipes/sftmix.py --workdir=DIR [overrides]."""

from absl import flags

from jaxsft import cli
from jaxsft.config import RecipeConfig
from jaxsft.errors import UserError
from jaxsft.recipes.run import run
from jaxsft.training.distributed import initialize

cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the stages, local or gs://; the same command on it goes on.")


def main() -> str:
    config = cli.get_config(RecipeConfig)
    if not WORKDIR.value:
        raise UserError("--workdir is missing; name a folder for the stages.")
    initialize()
    return run(config, WORKDIR.value)


if __name__ == "__main__":
    cli.main(main)
