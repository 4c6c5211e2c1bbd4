"""Merges by weights found on validation data.

python scripts/search_merge.py --config=configs/merge/search.py:validation.jsonl --output=DIR

The merged model is in DIR/merged, and DIR/trials.jsonl holds what was tried. The same command goes on where it stopped.
"""

from absl import flags

from jaxsft import cli
from jaxsft.config import SearchConfig
from jaxsft.errors import UserError
from jaxsft.merging.search import search

cli.define_config()
OUTPUT = flags.DEFINE_string("output", None, "A new folder, or one that the same search was broken off in.")


def main() -> str:
    config = cli.get_config(SearchConfig)
    if not OUTPUT.value:
        raise UserError("--output is missing; name a new folder.")
    return search(config, OUTPUT.value)


if __name__ == "__main__":
    cli.main(main)
