"""Named loss terms: what every objective returns, and the one place where sums become a loss."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
    """One additive part of the loss, `coefficient * sum / denominator`.

    Attributes:
      coefficient: how much the term counts.
      sum: float scalar, the sum over the examples or tokens at hand (one micro-batch).
      denominator: float scalar over the *whole global batch*: all rows, all devices, all micro-batches. Sums of
        micro-batches then add up to the loss of the batch however it was cut.
    """

    coefficient: float | jax.Array
    sum: jax.Array
    denominator: jax.Array


def total(terms: dict[str, Term]) -> jax.Array:
    """The loss (or one micro-batch's share of it): the scalar sum over terms of coefficient * sum / denominator.

    A term whose denominator is zero has nothing to average and counts zero.
    """
    return sum((term.coefficient * ratio(term.sum, term.denominator) for term in terms.values()), start=jnp.zeros(()))


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """numerator / denominator, and 0 where the denominator is 0."""
    empty = denominator == 0  # both `where`s: a NaN in the branch not taken would poison the gradient
    return jnp.where(empty, 0, numerator / jnp.where(empty, 1, denominator))
