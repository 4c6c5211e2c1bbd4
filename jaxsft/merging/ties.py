"""TIES: trim each task vector to its largest entries, elect a sign for every entry, average those that agree.

Yadav et al. 2023 (arXiv:2306.01708), section 4, per tensor. `trim` says how many entries are kept: "exact" is
floor(density n), by lowest index among equals; "threshold" is the rule of the authors' code, which keeps all entries
not below the (floor(density n) + 1)-th largest.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxsft.merging.selection import Cut, largest, share, taken
from jaxsft.merging.task_vectors import checked_weights, combine, differences, magnitude, magnitudes, match_l1

TRIMS = ("exact", "threshold")


def ties(
    models: Sequence[jax.Array],
    base: jax.Array,
    weights: Sequence[float],
    density: Sequence[float],
    scale: float = 1.0,
    normalize: bool = True,
    trim: str = "exact",
    rescale: str = "none",
) -> jax.Array:
    """The base plus what its descendants agree on.

    Args:
      models: arrays of one shape.
      base: what all were tuned from.
      weights: one for each.
      density: of each, the share of entries that is kept.
      scale: lambda of the paper.
      normalize: whether to divide by the weights of those that agree.
      trim: "exact" or "threshold".
      rescale: "l1" brings each trimmed task vector back to its L1 norm; "none" does not.

    Returns:
      At least float32.

    Raises:
      ValueError: for another number of weights or densities, and weights of both signs where they are divided by.
    """
    factors = checked_weights(weights, len(models), True, normalize)
    cuts = tuple(_cut(model, base, part, trim) for model, part in zip(models, density, strict=True))
    return _merge(tuple(models), base, factors, scale, cuts, normalize, rescale)


def _cut(model: jax.Array, base: jax.Array, density: float, trim: str) -> Cut:
    sizes = magnitudes(model, base)
    return largest(sizes, share(density, model.size) + (trim == "threshold"), all_ties=trim == "threshold")


@functools.partial(jax.jit, static_argnames=("normalize", "rescale"))
def _merge(models, base, weights, scale, cuts, normalize, rescale):
    taus = differences(models, base)
    kept = [jnp.where(taken(magnitude(model, base), cut), tau, 0) for model, tau, cut in zip(models, taus, cuts)]
    if rescale == "l1":
        kept = [match_l1(sparse, tau) for sparse, tau in zip(kept, taus)]
    return combine(base, kept, weights, scale, True, normalize)
