"""Means on the sphere: SLERP, NuSLERP, the Karcher mean, and model stock's ratio of angles.

All of them are weighted sums of their inputs whose coefficients depend on angles alone. So the angles are taken from
inner products, the coefficients are worked out on the host in float64, and one sum over the inputs ends it.
Vectors are whole tensors, or the rows of one.

    slerp:    (sin((1-t) phi) a + sin(t phi) b) / sin phi,      cos phi = <a, b> / (|a| |b|), t = w_b / (w_a + w_b)
    karcher:  the point m of the sphere with sum_k w_k log_m(u_k) = 0, u_k = a_k / |a_k|, times sum_k w_k |a_k|
    stock:    t mean_k theta_k + (1 - t) theta_0,   t = K c / (1 + (K-1) c), c the mean cosine of two task vectors

SLERP: Shoemake 1985. The Karcher (Frechet) mean: Karcher 1977. Model stock: Jang et al. 2024 (arXiv:2403.19522), whose
c is taken as 0 where it is negative: task vectors that oppose each other say nothing but the start.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.merging.linear import base_plus, coefficients, on_host, weighted_sum, wide

# Sines of the angle below which the arc is a straight line: of SLERP, whose rule is |cos| > 0.9995, and of NuSLERP.
SLERP_SINE, NUSLERP_SINE = (1 - 0.9995**2) ** 0.5, 1e-8
STEPS, TOLERANCE = 100, 1e-12  # of the Karcher mean; it converges in a few


def slerp(models: Sequence[jax.Array], weights: Sequence[float]) -> jax.Array:
    """From the first of two models to the second, at t = w_2 / (w_1 + w_2), on the arc between them.

    Where they are nearly parallel or opposite (|cos| > 0.9995), or one is 0, on the straight line.

    Args:
      models: two arrays of one shape.
      weights: of the two.

    Raises:
      ValueError: for another number of models, or weights that cancel.
    """
    return weighted_sum(tuple(models), _arc(models, None, weights, False, SLERP_SINE).T)


def nuslerp(
    models: Sequence[jax.Array], weights: Sequence[float], base: jax.Array | None = None, per_row: bool = False
) -> jax.Array:
    """SLERP however small the angle is, of task vectors where there is a base, and of rows on their own if asked.

    Args:
      models: two arrays of one shape.
      weights: of the two.
      base: what both were tuned from; the arc is then between the task vectors, and is added to it.
      per_row: whether each row (of [out, in], what makes one output) has an angle of its own.

    Raises:
      ValueError: as `slerp`.
    """
    factors = _arc(models, base, weights, per_row, NUSLERP_SINE).T
    return weighted_sum(tuple(models), factors) if base is None else base_plus(tuple(models), base, factors)


def karcher(models: Sequence[jax.Array], weights: Sequence[float], base: jax.Array | None = None) -> jax.Array:
    """The Riemannian mean of any number of models, of task vectors where there is a base.

    Args:
      models: arrays of one shape.
      weights: one for each, positive.
      base: what all were tuned from.

    Raises:
      ValueError: for another number of weights, or one that is not positive.
    """
    shares = coefficients(weights, len(models), normalize=True)
    if (shares <= 0).any():
        raise ValueError(f"the Karcher mean needs positive weights, not {list(weights)}")
    factors = _karcher(inner_products(models, base), shares)
    return weighted_sum(tuple(models), factors) if base is None else base_plus(tuple(models), base, factors)


def model_stock(models: Sequence[jax.Array], base: jax.Array, per_row: bool = False) -> jax.Array:
    """Between the base and the plain mean of the models, the nearer to the base the wider the models' angle.

    Args:
      models: two arrays of one shape, or more.
      base: what all were tuned from.
      per_row: whether each row has a ratio of its own.

    Raises:
      ValueError: for fewer than two models.
    """
    count = len(models)
    if count < 2:
        raise ValueError("model stock needs two models or more")
    products = inner_products(models, base, per_row)
    lengths = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    both = lengths[..., :, None] * lengths[..., None, :]
    cosines = np.divide(products, both, out=np.zeros_like(products), where=both > 0)
    first, second = np.triu_indices(count, 1)
    mean = np.clip(cosines[..., first, second].mean(-1), 0, 1)
    ratio = count * mean / (1 + (count - 1) * mean)
    return base_plus(tuple(models), base, np.repeat(ratio[None] / count, count, 0))


def inner_products(models: Sequence[jax.Array], base: jax.Array | None, per_row: bool = False) -> np.ndarray:
    """<a_i, a_j> of models, or of task vectors, as float64: [K, K], or [rows, K, K] of rows (a vector is one row).

    Sums along a row are taken in float32 (fewer than 2^15 terms), sums of rows in float64.
    """
    count = len(models)
    rows = np.zeros((1 if models[0].ndim < 2 else models[0].shape[0], count, count))
    for i in range(count):
        for j in range(i + 1):
            found = on_host(_row_products(models[i], models[j], base)).astype(np.float64)
            rows[:, i, j] = rows[:, j, i] = found.reshape(len(rows), -1).sum(-1)
    return rows if per_row and models[0].ndim > 1 else rows.sum(0)


@jax.jit
def _row_products(a: jax.Array, b: jax.Array, base: jax.Array | None) -> jax.Array:
    start = 0 if base is None else wide(base)
    return jnp.sum((wide(a) - start) * (wide(b) - start), axis=-1)


def _arc(models, base, weights, per_row, least_sine):
    """Coefficients of the two ends: [2], or [rows, 2]."""
    if len(models) != 2:
        raise ValueError(f"SLERP is of two models, not {len(models)}")
    t = coefficients(weights, 2, normalize=True)[1]
    products = inner_products(models, base, per_row)
    a, b = np.sqrt(products[..., 0, 0]), np.sqrt(products[..., 1, 1])
    cosine = np.clip(np.divide(products[..., 0, 1], a * b, out=np.zeros_like(a), where=a * b > 0), -1, 1)
    line = (1 - cosine**2 < least_sine**2) | (a * b == 0)
    angle = np.where(line, np.pi / 2, np.arccos(cosine))
    first = np.where(line, 1 - t, np.sin((1 - t) * angle) / np.sin(angle))
    return np.stack([first, np.where(line, t, np.sin(t * angle) / np.sin(angle))], -1)


def _karcher(products: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Coefficients of the inputs, from their inner products: all points of the iteration are sums of the inputs."""
    lengths = np.sqrt(np.diag(products))
    there = lengths > 0
    if not there.any():
        return shares
    scale = shares @ lengths
    inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=there)
    units = np.diag(inverse)  # column k: the coefficients of u_k
    shares = shares * there / shares[there].sum()
    dot = functools.partial(np.einsum, "i,ij,j->", optimize=True)
    mean = units @ shares
    length = np.sqrt(max(dot(mean, products, mean), 0))
    mean = units[:, int(np.argmax(there))] if length < TOLERANCE else mean / length
    for _ in range(STEPS):
        tangent = np.zeros_like(mean)
        for k in np.flatnonzero(there):
            cosine = np.clip(dot(mean, products, units[:, k]), -1, 1)
            angle = np.arccos(cosine)
            stretch = angle / np.sin(angle) if np.sin(angle) > TOLERANCE else 1.0
            tangent += shares[k] * stretch * (units[:, k] - cosine * mean)
        step = np.sqrt(max(dot(tangent, products, tangent), 0))
        if step < TOLERANCE:
            break
        mean = np.cos(step) * mean + np.sin(step) * tangent / step
        mean /= np.sqrt(dot(mean, products, mean))
    return scale * mean
