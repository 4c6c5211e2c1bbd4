"""Shows what a config trains on: python scripts/inspect_data.py --config=configs/sft.py [--num_examples=3].

Prints the report of records kept, cut and dropped, how full the rows are, and the first examples with their supervised
tokens in colour (between ⟦ and ⟧ where the output is no terminal, or NO_COLOR is set).
"""

import os
import sys

from absl import flags

from jaxsft import cli, world
from jaxsft.config import DataConfig, ModelConfig
from jaxsft.data.inspection import describe, show
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.models.checkpoint import resolve

cli.define_config()
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 3, "How many examples are shown.", lower_bound=0)
FIRST = flags.DEFINE_integer("first", 0, "Index of the first one shown.", lower_bound=0)


def main() -> str:
    config = cli.get_config(object)
    data, model = getattr(config, "data", None), getattr(config, "model", None)
    if not isinstance(data, DataConfig) or not isinstance(model, ModelConfig):
        raise UserError(f"the config is a {type(config).__name__}; this script takes one with `data` and `model`.")
    # Of a hub's model the tokenizer alone is fetched, not the weights that `resolve` would bring.
    path = resolve(model.path) if model.path.startswith(world.PREFIX) else model.path
    tokenizer = load_tokenizer(path)
    print(f"reading {data.path or ', '.join(source.path for source in data.sources)}")
    dataset, summary = describe(data, tokenizer, getattr(config, "seed", 0))
    print(dataset.report)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for i in range(FIRST.value, min(FIRST.value + NUM_EXAMPLES.value, len(dataset))):
        print(f"\n--- example {i} ---\n{show(dataset, tokenizer, i, colour)}")
    return f"\n{summary}"


if __name__ == "__main__":
    cli.main(main)
