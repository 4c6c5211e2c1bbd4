"""Weighted sums of models and of task vectors.

    linear:           theta = sum_k w_k theta_k                      / sum_k w_k
    task arithmetic:  theta = theta_0 + s sum_k w_k (theta_k - theta_0)   [/ sum_k w_k]

WiSE-FT (Wortsman et al. 2021, arXiv:2109.01903) is `linear` of two models, the one that fine-tuning started from and
the one that it ended with; a model soup (Wortsman et al. 2022, arXiv:2203.05482) that of many with equal weights. Task
arithmetic: Ilharco et al. 2023 (arXiv:2212.04089). They work where the models lie in one basin: tuned from one start.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

LEAST_SHARE = 0.05  # of the sum of |weights| that the sum of weights must be, where it is divided by


def linear(models: Sequence[jax.Array], weights: Sequence[float], normalize: bool = True) -> jax.Array:
    """The weighted mean, or the weighted sum.

    Args:
      models: arrays of one shape and any float dtype.
      weights: one for each.
      normalize: whether to divide by the sum of the weights.

    Returns:
      At least float32: every input is widened, the sum is taken wide, and nothing is rounded.

    Raises:
      ValueError: for another number of weights than of models, or weights that cancel where they are divided by.
    """
    return weighted_sum(tuple(models), coefficients(weights, len(models), normalize))


def task_arithmetic(
    models: Sequence[jax.Array],
    base: jax.Array,
    weights: Sequence[float],
    scale: float = 1.0,
    normalize: bool = False,
) -> jax.Array:
    """The base plus the scaled, weighted sum of task vectors; arguments and errors as those of `linear`."""
    return base_plus(tuple(models), base, scale * coefficients(weights, len(models), normalize))


def coefficients(weights: Sequence[float], count: int, normalize: bool) -> np.ndarray:
    """The weights as float64 [count], divided by their sum if asked.

    Raises:
      ValueError: for another number of them, or a sum too near to 0 to be divided by.
    """
    array = np.asarray(weights, np.float64)
    if array.shape != (count,):
        raise ValueError(f"{array.size} weights for {count} models")
    if not normalize:
        return array
    check_divisible(array)
    return array / array.sum()


def check_divisible(weights: Sequence[float]) -> None:
    """Refuses weights whose sum is near 0: divided by it, small differences become large ones.

    Raises:
      ValueError: if they cancel.
    """
    whole, parts = abs(float(np.sum(weights))), float(np.sum(np.abs(weights)))
    if whole < LEAST_SHARE * parts or parts == 0:
        raise ValueError(
            f"the weights {', '.join(f'{w:g}' for w in weights)} nearly cancel, and their sum is divided by; choose "
            "others, or set normalize to False"
        )


@jax.jit
def weighted_sum(models: tuple[jax.Array, ...], factors: jax.Array) -> jax.Array:
    """sum_k factors[k] models[k], wide; `factors` is [K], or [K, rows] with a factor for each row of each model."""
    return _sum([wide(model) for model in models], factors)


@jax.jit
def base_plus(models: tuple[jax.Array, ...], base: jax.Array, factors: jax.Array) -> jax.Array:
    """base + sum_k factors[k] (models[k] - base), wide; `factors` as for `weighted_sum`."""
    start = wide(base)
    return start + _sum([wide(model) - start for model in models], factors)


def wide(x: jax.Array) -> jax.Array:
    """In float32, or as it is where it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def on_host(x: jax.Array) -> np.ndarray:
    """The whole array, in every process."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, PartitionSpec()))(x))


def _sum(terms: list[jax.Array], factors: jax.Array) -> jax.Array:
    shape = (-1,) + (1,) * (terms[0].ndim - 1) if factors.ndim > 1 else ()
    products = [term * factors[k].astype(term.dtype).reshape(shape) for k, term in enumerate(terms)]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total
