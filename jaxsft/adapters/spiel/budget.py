"""How many weights of each matrix are tuned.

They are shared out by size: k = floor(total * entries of the matrix / entries of all that are targeted). The floor
leaves the sum a few short of the total, as in the authors' code.
"""

import functools
from typing import Any

import numpy as np

from jaxsft.config import SpIELConfig
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.decoder import Decoder

DENSITY = 0.01  # the authors' default
LONG, COARSE, FINE = 1 << 14, 256, 8  # lists of at least LONG are a multiple of COARSE long, others of FINE

WHERE = "config.adapter.spiel"


def counts(arch: Architecture, config: SpIELConfig, shape: tuple[int, ...]) -> tuple[int, int]:
    """(k, the length of the lists that hold them), for a kernel [..., in, out].

    The length divides over devices; the lists are padded by less than 2 per cent, or 7.

    Raises:
      UserError: for a budget that leaves a matrix nothing, or more than it has.
    """
    entries, all_entries = int(np.prod(shape[-2:])), targeted(arch, config.targets)
    count = int(total(arch, config) * entries / all_entries)
    if not 0 < count < entries:
        raise UserError(
            f"{WHERE} tunes {total(arch, config):,} weights of the {all_entries:,} that its targets have, which is "
            f"{count} in a matrix of {entries:,}; set weights, density or lora_rank so that it is more than none and "
            "less than all."
        )
    unit = COARSE if count >= LONG else FINE
    return count, -(-count // unit) * unit


def check(arch: Architecture, config: SpIELConfig) -> None:
    """Refuses a budget or targets that cannot be.

    Raises:
      UserError: see `counts` and `_matrices`.
    """
    for shape in set(_matrices(arch, config.targets)):
        counts(arch, config, shape)


def total(arch: Architecture, config: SpIELConfig) -> int:
    """How many weights may be tuned in all.

    Raises:
      UserError: if it is said in several ways.
    """
    said = {name: value for name in ("weights", "density", "lora_rank") if (value := getattr(config, name))}
    if len(said) > 1:
        raise UserError(f"{WHERE} has both {' and '.join(said)}; one of them says how many weights are tuned.")
    if config.weights:
        return config.weights
    if config.lora_rank:
        return sum(config.lora_rank * sum(shape) for shape in _matrices(arch, config.targets))
    return int(
        (config.density or DENSITY) * sum(int(np.prod(leaf.shape)) for _, leaf in layout.leaves(abstract_base(arch)))
    )


def targeted(arch: Architecture, targets: tuple[str, ...]) -> int:
    """Entries of all targeted matrices."""
    return sum(int(np.prod(shape)) for shape in _matrices(arch, targets))


@functools.cache
def _matrices(arch: Architecture, targets: tuple[str, ...]) -> list[tuple[int, int]]:
    """The shapes (in, out) of all targeted matrices, one for each layer.

    Raises:
      UserError: if the head or the embedding is among them.
    """
    shapes = []
    for name, (leaf, row) in layout.flatten(arch, abstract_base(arch)).items():
        module, _, kind = name.rpartition(".")
        if kind not in ("kernel", "embedding") or not layout.matches(targets, module):
            continue
        if row is None:
            raise UserError(
                f"{WHERE}.targets names {module}; SpIEL tunes weights of linear maps in layers alone, so choose "
                "patterns such as 'layers.*.mlp.*_proj'."
            )
        shapes.append(leaf.shape[-2:])
    return shapes


@functools.cache
def abstract_base(arch: Architecture) -> Any:
    """The shapes of the model's parameters."""
    return Decoder(arch).abstract_params()


@functools.cache
def logical_axes(arch: Architecture) -> Any:
    """The logical axes of the model's parameters."""
    return Decoder(arch).logical_axes()
