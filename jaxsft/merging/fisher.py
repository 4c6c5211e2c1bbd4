"""Fisher-weighted mean: each parameter is taken from the models to which it matters.

    theta = sum_k w_k F_k theta_k / sum_k w_k F_k

elementwise, F_k the diagonal of model k's Fisher information on its own data plus a little. Matena and Raffel 2022
(arXiv:2111.09832), equation 4; `jaxsft.scoring.fisher` computes F_k.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxsft.merging.linear import coefficients, wide

FLOOR = 1e-10  # added to every entry: where all models say 0, the result is the weighted mean


def fisher(
    models: Sequence[jax.Array],
    information: Sequence[jax.Array],
    weights: Sequence[float],
    norms: Sequence[float] | None = None,
) -> jax.Array:
    """The mean weighted by Fisher information.

    Args:
      models: arrays of one shape.
      information: of each, float32 of that shape, non-negative.
      weights: one for each, positive.
      norms: of each, what its information is divided by, such as its norm over the whole model, lest the model of the
        steepest loss outweigh all others; None is 1.

    Returns:
      At least float32.

    Raises:
      ValueError: for another number of weights, or one that is not positive.
    """
    factors = coefficients(weights, len(models), normalize=True)
    if (factors <= 0).any():
        raise ValueError(f"a Fisher-weighted mean needs positive weights, not {list(weights)}")
    scales = [1.0] * len(models) if norms is None else [1 / norm for norm in norms]
    return _merge(tuple(models), tuple(information), factors, jnp.asarray(scales, jnp.float32))


@jax.jit
def _merge(models, information, factors, scales):
    """Around the first model, so that models that agree come out as they are."""
    first = wide(models[0])
    total, divisor = jnp.zeros_like(first), jnp.zeros_like(first)
    for k, (model, entries) in enumerate(zip(models, information)):
        importance = factors[k].astype(first.dtype) * (scales[k] * entries + FLOOR).astype(first.dtype)
        total = total + importance * (wide(model) - first)
        divisor = divisor + importance
    return first + total / divisor
