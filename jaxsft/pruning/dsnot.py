"""DSnoT: a mask is improved without training, by exchanging kept and pruned weights of each output.

Zhang et al. 2023, "Dynamic Sparse No Training" (arXiv:2310.08915). With mu_j the sum over all tokens of input j over N
examples and M_ij = W_ij mu_j, an output i misses in expectation

    e = sum over its pruned j of M_ij

While |e| > threshold, with s = sign e: of what was pruned at first the weight g with the largest s M_ig / Var_g^p
returns; of what was kept at first the weight q with the smallest Wanda score among those with s M_iq < 0 goes (of N:M
groups: the one with the smallest score in the group of g); e <- e + M_iq - M_ig. No weight is moved twice.

The paper's code makes an exchange whatever comes of it (for N:M: unless e changes its sign). That can raise the error
of the outputs; here, without `paper`, an output is done when its |e| would not fall.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsft.config import DSnoTConfig
from jaxsft.pruning.masks import Sparsity


class Exchange(NamedTuple):
    """The state of the loop.

    Attributes:
      kept: bool [in, out].
      moved: bool [in, out], what was exchanged.
      error: float [out], e.
      active: bool [out].
      cycle: int32 [].
    """

    kept: jax.Array
    moved: jax.Array
    error: jax.Array
    active: jax.Array
    cycle: jax.Array


def refine(
    kernel: jax.Array,
    kept: jax.Array,
    scores: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    config: DSnoTConfig,
    sparsity: Sparsity,
) -> tuple[jax.Array, jax.Array]:
    """A better mask with as many weights in each output (of N:M: in each group).

    Args:
      kernel: [in, out], not pruned.
      kept: bool [in, out], the mask to start from.
      scores: float [in, out], those of Wanda.
      mean: float [in], mu: per example, not per token.
      variance: float [in], over tokens.
      config: threshold, power, cycles, and whether as in the paper's code.
      sparsity: that of the mask.

    Returns:
      bool [in, out], and float [out], the expected error e of each output.
    """
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    change = kernel.astype(wide) * mean.astype(wide)[:, None]
    divided = change / jnp.maximum(variance.astype(wide), jnp.finfo(wide).tiny)[:, None] ** config.power
    pruned, outputs = ~kept, jnp.arange(kernel.shape[1])
    place = jnp.arange(kernel.shape[0])[:, None]

    def choose(values: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The index of the largest allowed value of each column, and whether there is one."""
        values = jnp.clip(
            values, jnp.finfo(wide).min, jnp.finfo(wide).max
        )  # an input without variance has infinite ones
        return jnp.argmax(jnp.where(allowed, values, -jnp.inf), axis=0), allowed.any(0)

    def step(state: Exchange) -> Exchange:
        sign = jnp.sign(state.error)
        grow, found = choose(sign * divided, pruned & ~state.moved)
        leaves = kept & ~state.moved
        if sparsity.group:
            leaves &= place // sparsity.group == grow // sparsity.group
        else:
            leaves &= sign * change < 0
        prune, other = choose(-scores.astype(wide), leaves)
        error = state.error + change[prune, outputs] - change[grow, outputs]
        good = jnp.abs(error) < jnp.abs(state.error)
        if config.paper:
            good = jnp.sign(error) == sign if sparsity.group else jnp.ones_like(good)
        active = state.active & (jnp.abs(state.error) > config.threshold) & found & other & good
        exchanged = ((place == grow) | (place == prune)) & active
        return Exchange(
            state.kept ^ exchanged,
            state.moved | exchanged,
            jnp.where(active, error, state.error),
            active,
            state.cycle + 1,
        )

    error = jnp.sum(jnp.where(pruned, change, 0), axis=0)
    start = Exchange(kept, jnp.zeros_like(kept), error, jnp.ones(kernel.shape[1], bool), jnp.int32(0))
    more = lambda state: state.active.any() & (state.cycle < config.cycles)
    end = jax.lax.while_loop(more, step, start)
    return end.kept, end.error
