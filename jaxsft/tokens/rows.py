"""First values of the rows of new tokens, and the matrices that hold them. Pure functions of arrays on the host.

A normal draw with the mean m and the covariance of n rows X (Hewitt 2021, "Initializing new word embeddings for
pretrained language models") is m + (X - m)^T z / sqrt(n) with z ~ N(0, I_n): no D x D matrix is made. transformers
(pull request 33325) scales the covariance by 1e-9, which is "mean" to five digits.
"""

from collections.abc import Sequence

import numpy as np

SMALL = 0.02  # what transformers drew with before version 4.46


def new_rows(
    known: np.ndarray, count: int, init: str, rng: np.random.Generator, described: Sequence[Sequence[int]] = ()
) -> np.ndarray:
    """First values for the rows of new tokens.

    Args:
      known: [V, D], the rows of the tokens that are there, without padding.
      count: of new tokens.
      init: as `jaxsft.config.TokensConfig.init`.
      rng: of the draws.
      described: for "mean_of_text", the ids of each new token's description.

    Returns:
      float64 [count, D].
    """
    size, width = known.shape
    if init in ("normal0.02", "unit_normal"):
        return rng.normal(0.0, SMALL if init == "normal0.02" else 1.0, (count, width))
    if init == "mean_of_text":
        return np.stack([known[list(ids)].mean(axis=0, dtype=np.float64) for ids in described])
    mean = known.mean(axis=0, dtype=np.float64)
    if init == "mean":
        return np.tile(mean, (count, 1))
    z = rng.normal(size=(count, size))
    return mean + (z @ known.astype(np.float64) - z.sum(axis=1, keepdims=True) * mean) / size**0.5


def with_rows(table: np.ndarray, size: int, ids: Sequence[int], values: np.ndarray) -> np.ndarray:
    """A matrix of `size` rows: those of the table bit for bit, `values` at `ids`, and zeros where it grew otherwise."""
    grown = np.zeros((size, table.shape[1]), table.dtype)
    grown[: len(table)] = table
    grown[list(ids)] = values.astype(table.dtype)
    return grown


def padded(needed: int, held: int, multiple: int) -> int:
    """The number of rows for ids below `needed` in a matrix that has `held`, rounded up to a multiple."""
    return -(-max(needed, held) // multiple) * multiple
