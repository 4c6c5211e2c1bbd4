"""The tuning methods by name: what `config.adapter.kind` may be."""

import dataclasses
from collections.abc import Callable

from jaxsft.adapters import loramoe, rows
from jaxsft.adapters.full import Full
from jaxsft.adapters.lora import LoRA
from jaxsft.adapters.method import Method
from jaxsft.adapters.spiel.method import make_spiel
from jaxsft.adapters.spp import SPP
from jaxsft.config import AdapterConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.validation import did_you_mean

# Each: the run's config, the model, and the run's length in steps -> the method. A kind of adapter has its settings in
# the field of `AdapterConfig` of the same name.
METHODS: dict[str, Callable[[TrainConfig, Architecture, int], Method]] = {
    "none": lambda config, arch, steps: Full(arch, config.optimizer.freeze),
    "lora": lambda config, arch, steps: LoRA(config.adapter.lora, arch),
    "spp": lambda config, arch, steps: SPP(config.adapter.spp, arch),
    "loramoe": lambda config, arch, steps: loramoe.make(config, arch),
    "spiel": make_spiel,
    "rows": lambda config, arch, steps: rows.make(config.adapter.rows, arch),
}


def make_method(config: TrainConfig, arch: Architecture, steps: int) -> Method:
    """The tuning method that the config names.

    Args:
      config: the run's.
      arch: the model.
      steps: length of the run, for methods with a clock.

    Raises:
      UserError: for a name that is none, settings of another kind of adapter, or a choice of parameters that the method
        cannot train.
    """
    kind = config.adapter.kind
    if kind not in METHODS:
        near = did_you_mean(kind, METHODS) or "."
        raise UserError(f"config.adapter.kind is {kind!r}; the kinds are: {', '.join(METHODS)}{near}")
    for field in dataclasses.fields(AdapterConfig):
        if field.name not in ("kind", "start", kind) and getattr(config.adapter, field.name) != getattr(
            AdapterConfig(), field.name
        ):
            raise UserError(
                f"config.adapter.{field.name} is set, but config.adapter.kind is {kind!r}, which does not read it; "
                f"set the kind to {field.name!r}, or leave those settings alone."
            )
    method = METHODS[kind](config, arch, steps)
    if kind == "none":
        if config.adapter.start:
            raise UserError("config.adapter.start is set, but config.adapter.kind is 'none'; set the adapter's kind.")
        return method
    if config.optimizer.freeze:
        raise UserError(
            "config.optimizer.freeze has no effect under an adapter; leave it empty and narrow the targets."
        )
    where, patterns = method.patterns
    if arch.tied and layout.matches(patterns, "embed") and not method.ties:
        raise UserError(
            f"{where} names embed, which is tied to this model's head: merging the adapter would change the head too; "
            "choose patterns that leave embed out."
        )
    return method
