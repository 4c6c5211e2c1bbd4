"""Merges models: python scripts/merge.py --config=configs/merge/wise_ft.py --output=DIR [--config.models=...].

Models are Hugging Face folders, hub names or workdirs. What it writes is a folder that every script opens.
"""

from absl import flags

from jaxsft import cli
from jaxsft.config import MergeConfig
from jaxsft.errors import UserError
from jaxsft.merging.merge import merge

cli.define_config()
OUTPUT = flags.DEFINE_string("output", None, "A new or empty folder.")


def main() -> str:
    config = cli.get_config(MergeConfig)
    if not OUTPUT.value:
        raise UserError("--output is missing; name a new or empty folder.")
    print(f"merging {', '.join(f'{w:g} x {m}' for w, m in zip(config.weights, config.models))} into {OUTPUT.value}")
    return merge(config, OUTPUT.value)


if __name__ == "__main__":
    cli.main(main)
