"""Prunes a model: python scripts/prune.py --config=configs/prune/wanda.py --output=DIR [--config.model.path=...].

What it writes is a Hugging Face folder with zeros, which every script opens; `configs/spp.py` fine-tunes it and keeps
them.
"""

from absl import flags

from jaxsft import cli
from jaxsft.config import PruneConfig
from jaxsft.errors import UserError
from jaxsft.pruning.prune import prune

cli.define_config()
OUTPUT = flags.DEFINE_string("output", None, "A new or empty folder.")


def main() -> str:
    config = cli.get_config(PruneConfig)
    if not config.model.path:
        raise UserError("config.model.path is empty; name the model that is to be pruned.")
    if not OUTPUT.value:
        raise UserError("--output is missing; name a new or empty folder.")
    refined = ", refined by DSnoT" if config.dsnot.targets else ""
    print(f"pruning {config.model.path} to {config.sparsity} by {config.score}{refined}, into {OUTPUT.value}")
    return prune(config, OUTPUT.value)


if __name__ == "__main__":
    cli.main(main)
