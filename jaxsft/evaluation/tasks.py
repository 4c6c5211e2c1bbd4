"""The tasks of `scripts/evaluate.py`, by name."""

import dataclasses
from typing import Any

import jax

from jaxsft import __version__
from jaxsft.config import EvaluateConfig, to_dict
from jaxsft.evaluation import deviation, multiple_choice, perplexity
from jaxsft.sharding import make_mesh
from jaxsft.training.restore import open_model

HEADLINES = {
    "perplexity": "nll_per_token {nll_per_token:.5f} over {tokens} tokens of {examples} examples",
    "multiple_choice": "accuracy {accuracy:.4f} +- {standard_error:.4f} (chance {chance:.4f}) on {questions} questions",
    "deviation": "deviation {deviation:.5f}, kl_per_token {kl_per_token:.5f} over {tokens} tokens, {examples} examples",
}


def run(config: EvaluateConfig) -> tuple[dict[str, Any], str]:
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
    record = {"task": config.task, "model": config.model.path, **figures}
    return record | {"config": to_dict(config), "version": __version__}, HEADLINES[config.task].format(**figures)
