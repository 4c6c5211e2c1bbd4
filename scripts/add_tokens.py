"""Gives a model new tokens: python scripts/add_tokens.py --config=configs/tokens.py --output=DIR [--config.model=...].

What it writes is a Hugging Face folder, larger by the rows of the new tokens. Texts of messages may hold these tokens:
training and prompts read them as themselves.
"""

from absl import flags

from jaxsft import cli
from jaxsft.config import TokensConfig
from jaxsft.errors import UserError
from jaxsft.tokens.add import add_tokens

cli.define_config()
OUTPUT = flags.DEFINE_string("output", None, "A new or empty folder.")


def main() -> str:
    config = cli.get_config(TokensConfig)
    if not OUTPUT.value:
        raise UserError("--output is missing; name a new or empty folder.")
    print(f"adding {', '.join(config.tokens)} to {config.model}, into {OUTPUT.value}")
    return add_tokens(config, OUTPUT.value)


if __name__ == "__main__":
    cli.main(main)
