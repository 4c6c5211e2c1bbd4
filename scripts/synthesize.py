"""Lets a model write data: python scripts/synthesize.py --config=configs/synthesize/sdft.py --output=DIR [overrides].

What it is given is config.data, what it makes of that config.method; DIR/records.jsonl can be trained on. Killed at any
moment, the same command goes on (docs/synthesis.md).
"""

from absl import flags

from jaxsft import cli
from jaxsft.config import SynthesisConfig
from jaxsft.errors import UserError
from jaxsft.synthesis.run import synthesize
from jaxsft.training.distributed import initialize

cli.define_config()
OUTPUT = flags.DEFINE_string("output", None, "A new folder, or one that the same synthesis was broken off in.")


def main() -> str:
    config = cli.get_config(SynthesisConfig)
    if not OUTPUT.value:
        raise UserError("--output is missing; name a new folder.")
    initialize()
    return synthesize(config, OUTPUT.value)


if __name__ == "__main__":
    cli.main(main)
