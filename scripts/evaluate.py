"""Measures a model, e.g. its negative log-likelihood on a file:

python scripts/evaluate.py --config=configs/eval/perplexity.py --model=DIR --config.data.path=FILE --output=OUT.json
"""

import dataclasses
import math
from typing import Any

import jax
from absl import flags

from jaxsft import __version__, cli
from jaxsft.config import EvaluateConfig, to_dict
from jaxsft.errors import UserError
from jaxsft.evaluation import deviation, multiple_choice, perplexity
from jaxsft.files import write_json
from jaxsft.sharding import make_mesh
from jaxsft.training.distributed import initialize
from jaxsft.training.restore import open_model

HEADLINES = {
    "perplexity": "nll_per_token {nll_per_token:.5f} over {tokens} tokens of {examples} examples",
    "multiple_choice": "accuracy {accuracy:.4f} +- {standard_error:.4f} (chance {chance:.4f}) on {questions} questions",
    "deviation": "deviation {deviation:.5f}, kl_per_token {kl_per_token:.5f} over {tokens} tokens, {examples} examples",
}

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
    figures, headline = measure(config)
    if jax.process_index() == 0:
        write_json(OUTPUT.value, figures)
    return f"{OUTPUT.value}: {headline}"


def measure(config: EvaluateConfig) -> tuple[dict[str, Any], str]:
    """Opens the model that `config.model` names, measures, and says what was measured.

    Returns:
      The figures, with `task`, `model`, the resolved `config` and the `version` that measured them; and a line.

    Raises:
      UserError: for a model or data that cannot be read or do not fit the task.
    """
    mesh = make_mesh(config.mesh)
    model = open_model(config.model.path, config.model, mesh)
    if config.data.template == "auto":
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, template=model.template))
    print(f"{config.task} of {config.model.path} on {jax.device_count()} x {jax.devices()[0].device_kind}")
    if config.task == "perplexity":
        figures = perplexity.measure(model, config, mesh)
    elif config.task == "multiple_choice":
        figures = multiple_choice.measure(model, config, mesh)
    else:
        start = str(model.source) if model.method is not None and model.adapters is None else ""
        reference = config.reference or start  # of an adapter it is the base, which is there already
        figures = deviation.measure(
            model, config, mesh, open_model(reference, config.model, mesh) if reference else None
        )
    bad = [name for name, value in figures.items() if isinstance(value, float) and not math.isfinite(value)]
    if bad:
        raise UserError(f"{bad[0]} is {figures[bad[0]]}: the model does not fit the data, or nothing of it was scored.")
    record = {"task": config.task, "model": config.model.path, **figures}
    return record | {"config": to_dict(config), "version": __version__}, HEADLINES[config.task].format(**figures)


if __name__ == "__main__":
    cli.main(main)
