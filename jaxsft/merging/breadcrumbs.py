"""Model breadcrumbs: drop the largest and the smallest entries of each task vector, then add.

Davari and Belilovsky 2023 (arXiv:2312.06795), per tensor. Of n entries floor(gamma n) of the largest go, and so many of
the smallest that floor(density n) stay; where gamma > 1 - density, fewer of the largest go, so that as many stay.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxsft.merging.selection import Cut, largest, share, taken
from jaxsft.merging.task_vectors import checked_weights, combine, differences, magnitude, magnitudes, match_l1


def breadcrumbs(
    models: Sequence[jax.Array],
    base: jax.Array,
    weights: Sequence[float],
    density: Sequence[float],
    gamma: float = 0.01,
    scale: float = 1.0,
    normalize: bool = False,
    vote: bool = False,
    rescale: str = "none",
) -> jax.Array:
    """The base plus the task vectors' middle entries.

    Args:
      models, base, weights, density, scale, normalize, rescale: as for `jaxsft.merging.ties.ties`.
      gamma: the share of largest entries that is dropped.
      vote: whether signs are elected as in TIES.

    Returns:
      At least float32.

    Raises:
      ValueError: as `ties`.
    """
    factors = checked_weights(weights, len(models), vote, normalize)
    cuts = tuple(_cuts(model, base, part, gamma) for model, part in zip(models, density, strict=True))
    return _merge(tuple(models), base, factors, scale, cuts, vote, normalize, rescale)


def _cuts(model: jax.Array, base: jax.Array, density: float, gamma: float) -> tuple[Cut, Cut]:
    """The cut that takes what is dropped above, and the one that takes that and what is kept."""
    kept = share(density, model.size)
    above = min(int(gamma * model.size + 1e-9), model.size - kept)
    sizes = magnitudes(model, base)
    return largest(sizes, above), largest(sizes, above + kept)


@functools.partial(jax.jit, static_argnames=("vote", "normalize", "rescale"))
def _merge(models, base, weights, scale, cuts, vote, normalize, rescale):
    taus, kept = differences(models, base), []
    for model, tau, (above, both) in zip(models, taus, cuts):
        size = magnitude(model, base)
        kept.append(jnp.where(taken(size, both) & ~taken(size, above), tau, 0))
    if rescale == "l1":
        kept = [match_l1(sparse, tau) for sparse, tau in zip(kept, taus)]
    return combine(base, kept, weights, scale, vote, normalize)
