"""Opens models, merges them, and leaves a Hugging Face folder: what `scripts/merge.py` does."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from jaxsft.config import MergeConfig, ModelConfig
from jaxsft.errors import UserError
from jaxsft.files import check_new_folder
from jaxsft.merging.interpolate import interpolate
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_hf
from jaxsft.training.restore import OpenModel, open_model
from jaxsft.validation import did_you_mean

Merge = Callable[[Sequence[Any], Sequence[float]], Any]  # (parameters of each model, weights) -> parameters

METHODS: dict[str, Merge] = {
    "linear": interpolate,
}


def merge(config: MergeConfig, output: epath.PathLike) -> str:
    """Merges the models that `config` names into a new folder; returns a line on the result.

    Adapters are first merged into their bases. Everything is computed in float32; dtype of the files, tokenizer and
    chat template are those of the last model.

    Raises:
      UserError: for models that do not go together, weights that do not fit them, and a folder that holds something.
    """
    check_new_folder(output)
    _check(config)
    mesh = make_mesh(config.mesh)
    models = [_open(name, mesh) for name in config.models]
    last = models[-1]
    for name, model in zip(config.models, models):
        if dataclasses.replace(model.decoder.arch, source="") != dataclasses.replace(last.decoder.arch, source=""):
            raise UserError(f"{name} and {config.models[-1]} are models of different shapes; merge models of one.")
        if model.tokenizer.fingerprint != last.tokenizer.fingerprint:
            raise UserError(f"{name} and {config.models[-1]} have different tokenizers; merge models that share one.")
    with jax.set_mesh(mesh):
        params = METHODS[config.method]([model.params for model in models], config.weights)
    return export_hf(dataclasses.replace(last, params=params), output, mesh)


def _open(name: str, mesh: Any) -> OpenModel:
    """As a plain model in float32."""
    model = open_model(name, ModelConfig(path=name, dtype="float32", param_dtype="float32"), mesh)
    with jax.set_mesh(mesh):
        return dataclasses.replace(model, params=model.merged(), adapters=None, method=None, parts=None)


def _check(config: MergeConfig) -> None:
    if config.method not in METHODS:
        near = did_you_mean(config.method, METHODS) or "."
        raise UserError(f"config.method is {config.method!r}; the methods are: {', '.join(METHODS)}{near}")
    if len(config.models) < 2:
        raise UserError(f"config.models is {config.models!r}; name two models or more.")
    if len(config.weights) != len(config.models):
        raise UserError(
            f"config.weights has {len(config.weights)} numbers for {len(config.models)} models; give each model one."
        )
    if abs(sum(config.weights) - 1) > 1e-6:
        raise UserError(f"config.weights add up to {sum(config.weights):g}; a weighted mean needs a sum of 1.")
