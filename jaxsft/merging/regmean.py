"""RegMean: the linear map whose outputs are nearest to those of the models on their own inputs.

    W = (sum_k w_k Gr_k)^-1 (sum_k w_k Gr_k W_k),    Gr_k = a G_k + (1 - a) diag(G_k),    G_k = X_k^T X_k / tokens

with W [in, out], X_k [tokens, in] the inputs that model k's map sees. For a = 1 it minimises
sum_k w_k |X_k W - X_k W_k|^2; a < 1 shrinks what inputs have in common, and makes the sum invertible. Jin et al. 2023
(arXiv:2212.09849). Everything that is no linear map is averaged.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxsft.merging.linear import coefficients, wide

JITTER = 1e-6  # of the mean diagonal entry, added to all


def regmean(
    models: Sequence[jax.Array], grams: Sequence[jax.Array], weights: Sequence[float], shrink: float = 0.9
) -> jax.Array:
    """The regression mean of linear maps.

    Args:
      models: kernels as files hold them, [out, in].
      grams: of each, float32 [in, in].
      weights: one for each, positive.
      shrink: a, the factor of the off-diagonal entries.

    Returns:
      At least float32.

    Raises:
      ValueError: for another number of weights, or one that is not positive.
    """
    factors = coefficients(weights, len(models), normalize=True)
    if (factors <= 0).any():
        raise ValueError(f"RegMean needs positive weights, not {list(weights)}")
    return _merge(tuple(models), tuple(grams), factors, shrink)


@jax.jit
def _merge(models, grams, factors, shrink):
    """Solved for the difference to the mean, so that the solver's rounding error is relative to that."""
    arrays = [wide(model) for model in models]
    mean = sum(factor.astype(array.dtype) * array for factor, array in zip(factors, arrays))
    total, right = 0.0, 0.0
    with jax.default_matmul_precision("highest"):
        for factor, gram, array in zip(factors, grams, arrays):
            gram = factor.astype(array.dtype) * gram.astype(array.dtype)
            shrunk = shrink * gram + (1 - shrink) * jnp.diag(jnp.diagonal(gram))
            total = total + shrunk
            right = right + (array - mean) @ shrunk
        size = total.shape[0]
        jitter = JITTER * jnp.trace(total) / size
        jitter = jnp.where(jitter > 0, jitter, 1)
        factor = jax.scipy.linalg.cho_factor(total + jitter * jnp.eye(size, dtype=total.dtype))
        return mean + jax.scipy.linalg.cho_solve(factor, right.T).T
