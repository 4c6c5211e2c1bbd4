"""DARE and DELLA: drop entries of each task vector at random, scale up the others, then add or elect signs.

DARE (Yu et al. 2023, arXiv:2311.03099) keeps each entry with probability `density`. DELLA (Deep et al. 2024,
arXiv:2406.11617) gives large entries the better chance: inside each row the entries are ranked by size, r from 0 (the
smallest) to 1, and kept with probability density - epsilon + 2 epsilon r; the one entry of a row of one has r = 1/2.

What is kept is rescaled: by "density" it is divided by its probability, so the expectation over keys is the task
vector, as both papers have it; by "l1" the whole is scaled to the L1 norm of the task vector, as mergekit does.

The mask of model k in tensor `name` is drawn from (seed, name, k) alone: neither the order of tensors nor their split
over devices changes it.
"""

import functools
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxsft.merging.task_vectors import checked_weights, combine, differences, match_l1


def dare(
    models: Sequence[jax.Array],
    base: jax.Array,
    weights: Sequence[float],
    density: Sequence[float],
    keys: Sequence[jax.Array],
    scale: float = 1.0,
    normalize: bool = False,
    vote: bool = False,
    rescale: str = "density",
    epsilon: float = 0.0,
) -> jax.Array:
    """The base plus randomly thinned task vectors; DELLA where `epsilon` is not 0.

    Args:
      models, base, weights, scale, normalize: as for `jaxsft.merging.ties.ties`.
      density: of each model, the probability (DELLA: the mean probability) that an entry is kept.
      keys: of each model, see `model_key`.
      vote: whether signs are elected as in TIES.
      rescale: "density", "l1" or "none".
      epsilon: of DELLA, half the range of probabilities.

    Returns:
      At least float32.

    Raises:
      ValueError: as `ties`, and if density +- epsilon leaves (0, 1).
    """
    factors = checked_weights(weights, len(models), vote, normalize)
    check_probabilities(density, epsilon)
    chances = jnp.asarray(density, jnp.float32)
    settings = (epsilon, vote, normalize, rescale, epsilon != 0)
    return _merge(tuple(models), base, factors, scale, chances, tuple(keys), *settings)


def model_key(seed: int, name: str, model: int) -> jax.Array:
    """The key of a model's mask in the tensor of that logical path."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), model)


def check_probabilities(density: Sequence[float], epsilon: float) -> None:
    """Refuses densities that would make probabilities outside (0, 1), but for a density of 1 without epsilon.

    Raises:
      ValueError: naming the first.
    """
    for part in density:
        if part < 1 or epsilon:
            low, high = part - abs(epsilon), part + abs(epsilon)
            if low <= 0 or high >= 1:
                raise ValueError(f"density {part:g} and epsilon {epsilon:g} make probabilities of {low:g} to {high:g}; "
                                 "they must lie between 0 and 1")  # fmt: skip


@functools.partial(jax.jit, static_argnames=("vote", "normalize", "rescale", "ranked"))
def _merge(models, base, weights, scale, chances, keys, epsilon, vote, normalize, rescale, ranked):
    taus, kept = differences(models, base), []
    for k, tau in enumerate(taus):
        chance = chances[k]
        if ranked:
            chance = chance - epsilon + 2 * epsilon * _ranks(tau)
        sparse = jnp.where(jax.random.uniform(keys[k], tau.shape) < chance, tau, 0)
        if rescale == "density":
            sparse = sparse / chance
        kept.append(match_l1(sparse, tau) if rescale == "l1" else sparse)
    return combine(base, kept, weights, scale, vote, normalize)


def _ranks(tau: jax.Array) -> jax.Array:
    """From 0 for the smallest entry of a row to 1 for the largest; equals by index."""
    width = tau.shape[-1]
    if width == 1:
        return jnp.full(tau.shape, 0.5, jnp.float32)
    order = jnp.argsort(jnp.abs(tau), axis=-1, stable=True)
    return jnp.argsort(order, axis=-1).astype(jnp.float32) / (width - 1)
