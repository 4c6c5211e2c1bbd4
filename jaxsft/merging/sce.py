"""SCE: select entries on which models differ, calculate each model's weight, erase minority signs.

Wan et al. 2024, "FuseChat" (arXiv:2408.07990), per tensor:

    S: of the entries whose variance over the models' task vectors is not 0, keep the share `density` that has most
    C: w_k proportional to mean(tau_k^2) over the kept entries
    E: m_k = [sgn tau_k = e], e the sign of sum_k tau_k
    theta = theta_0 + sum_k w_k m_k tau_k / sum_k w_k m_k

Weights are equal only where all task vectors are 0, however small they are otherwise.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.merging.linear import on_host
from jaxsft.merging.selection import NONE, Cut, largest, share, taken
from jaxsft.merging.task_vectors import combine, differences


def sce(models: Sequence[jax.Array], base: jax.Array, density: float = 1.0) -> jax.Array:
    """The base plus the models' agreement where they differ most.

    Args:
      models: arrays of one shape.
      base: what all were tuned from.
      density: the share of entries that is kept.

    Returns:
      At least float32.
    """
    models = tuple(models)
    mask = _kept(models, base, density) if density < 1 else None
    squares = on_host(_squares(models, base, mask)).astype(np.float64).reshape(len(models), -1).sum(1)
    weights = squares / squares.sum() if squares.sum() > 0 else np.full(len(models), 1 / len(models))
    return _merge(models, base, weights, mask)


def _kept(models: tuple[jax.Array, ...], base: jax.Array, density: float) -> jax.Array:
    """bool. Of the variances that the cut is of: another program may round them in another way."""
    variances, varying = _variances(models, base)
    count = share(density, int(on_host(varying).sum(dtype=np.int64)))
    return _taken(variances, largest(variances, count) if count else Cut(NONE, np.int32(0)))


_taken = jax.jit(taken)


@jax.jit
def _variances(models, base):
    taus = differences(models, base)
    mean = sum(taus[1:], taus[0]) / len(taus)
    variances = (sum((tau - mean) ** 2 for tau in taus) / len(taus)).astype(jnp.float32)
    return variances, jnp.sum(variances > 0, axis=-1, dtype=jnp.int32)


@jax.jit
def _squares(models, base, mask):
    return jnp.stack([jnp.sum(tau**2, axis=-1) for tau in _selected(models, base, mask)])


@jax.jit
def _merge(models, base, weights, mask):
    taus = _selected(models, base, mask)
    elected = jnp.where(sum(taus[1:], taus[0]) >= 0, 1, -1)
    agreeing = [jnp.where(jnp.sign(tau) == elected, tau, 0) for tau in taus]
    return combine(base, agreeing, weights, 1.0, True, True)


def _selected(models, base, mask):
    taus = differences(models, base)
    return taus if mask is None else [jnp.where(mask, tau, 0) for tau in taus]
