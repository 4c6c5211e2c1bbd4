"""Measures a model, e.g. its negative log-likelihood on a file:

python scripts/evaluate.py --config=configs/eval/perplexity.py --model=DIR --config.data.path=FILE --output=OUT.json
"""

import jax
from absl import flags

from jaxsft import cli
from jaxsft.config import EvaluateConfig
from jaxsft.errors import UserError
from jaxsft.evaluation import tasks
from jaxsft.files import write_json
from jaxsft.training.distributed import initialize

cli.define_config()
MODEL = flags.DEFINE_string("model", None, "Hugging Face folder or hub name, or a workdir.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write the figures to.")


def main() -> str:
    config = cli.get_config(EvaluateConfig)
    config.model.path = MODEL.value or config.model.path
    if not config.model.path:
        raise UserError("--model is missing; name a Hugging Face folder, a hub name or a workdir.")
    if not OUTPUT.value:
        raise UserError("--output is missing; name a JSON file for the figures.")
    initialize()
    figures, headline = tasks.run(config)
    if jax.process_index() == 0:
        write_json(OUTPUT.value, figures)
    return f"{OUTPUT.value}: {headline}"


if __name__ == "__main__":
    cli.main(main)
