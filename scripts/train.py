"""Fine-tunes a model: python scripts/train.py --config=configs/sft.py --workdir=DIR [--config.a.b=value ...]."""

from absl import flags

from jaxsft import cli
from jaxsft.config import TrainConfig
from jaxsft.errors import UserError
from jaxsft.training.distributed import initialize
from jaxsft.training.train import train

cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or gs://; the same command on it resumes.")


def main() -> str:
    config = cli.get_config(TrainConfig)
    if not WORKDIR.value:
        raise UserError("--workdir is missing; name a folder for the run.")
    initialize()
    return train(config, WORKDIR.value)


if __name__ == "__main__":
    cli.main(main)
