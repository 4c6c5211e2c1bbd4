"""Weighted sums of models.

    theta = sum_k w_k theta_k

WiSE-FT (Wortsman et al. 2021, arXiv:2109.01903) is the case of two, the model that fine-tuning started from and the one
that it ended with, with weights 1 - a and a; a model soup (Wortsman et al. 2022, arXiv:2203.05482) is that of many with
equal weights. It works where the models lie in one basin: fine-tuned from the same start.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def interpolate(models: Sequence[Tree], weights: Sequence[float]) -> Tree:
    """The weighted sum, added in at least float32 and rounded once to the first model's dtypes.

    Args:
      models: trees of arrays of the same shapes.
      weights: one for each.

    Raises:
      ValueError: for another number of weights than of models.
    """

    def add(first: jax.Array, *others: jax.Array) -> jax.Array:
        wide = jnp.promote_types(first.dtype, jnp.float32)
        terms = (weight * leaf.astype(wide) for weight, leaf in zip(weights, (first, *others), strict=True))
        return sum(terms, start=jnp.zeros((), wide)).astype(first.dtype)

    return jax.tree.map(add, *models)
