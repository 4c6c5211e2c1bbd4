"""Which weights of a linear map are kept: the best by a score, of each output's inputs or of groups of them.

Wanda (Sun et al. 2023, arXiv:2306.11695): |W_ij| ||X_j||_2, compared within an output. Kernels here are [in, out], so
an output is a column.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsft.errors import UserError


class Sparsity(NamedTuple):
    """How many weights are kept.

    Attributes:
      share: of the inputs of each output that are pruned; 0 with groups.
      keep: N, kept of each group; 0 without groups.
      group: M, consecutive inputs; 0 without.
    """

    share: float = 0.0
    keep: int = 0
    group: int = 0


def parse(text: str) -> Sparsity:
    """A `PruneConfig.sparsity`.

    Raises:
      UserError: if it is neither a share between 0 and 1 nor N:M with N < M.
    """
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        keep, group = map(int, match.groups())
        if 0 < keep < group:
            return Sparsity(keep=keep, group=group)
    elif re.fullmatch(r"0?\.\d+", text) and 0 < float(text) < 1:
        return Sparsity(share=float(text))
    raise UserError(f'config.sparsity is {text!r}; give a share below 1 such as "0.5", or N:M such as "2:4".')


def kept(scores: jax.Array, sparsity: Sparsity) -> jax.Array:
    """bool [in, out], True where a weight is kept; of equal scores the later ones are.

    Args:
      scores: [in, out], of any real dtype.
      sparsity: `int(in * share)` are pruned in every column, or M - N in every group.

    Raises:
      UserError: if M does not divide the inputs.
    """
    inputs, outputs = scores.shape
    if not sparsity.group:
        return _ranks(scores, 0) >= int(inputs * sparsity.share)
    if inputs % sparsity.group:
        raise UserError(
            f"config.sparsity keeps {sparsity.keep} of every {sparsity.group} inputs, which does not divide the "
            f"{inputs} inputs of a targeted map; choose another group, a share, or other targets."
        )
    ranks = _ranks(scores.reshape(-1, sparsity.group, outputs), 1)
    return (ranks >= sparsity.group - sparsity.keep).reshape(inputs, outputs)


def wanda(kernel: jax.Array, energy: jax.Array, examples: int) -> jax.Array:
    """|W_ij| sqrt(sum_t x_tj^2 / N): float32 [in, out].

    Args:
      kernel: [in, out].
      energy: [in], sum over all tokens of the squared input.
      examples: N.
    """
    return jnp.abs(kernel.astype(jnp.float32)) * jnp.sqrt(energy / examples)[:, None]


def magnitude(kernel: jax.Array) -> jax.Array:
    """|W|, float32 [in, out]."""
    return jnp.abs(kernel.astype(jnp.float32))


def _ranks(scores: jax.Array, axis: int) -> jax.Array:
    """The place of each score in rising order along an axis."""
    return jnp.argsort(jnp.argsort(scores, axis=axis, stable=True), axis=axis, stable=True)
