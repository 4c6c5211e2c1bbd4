"""The localized balancing constraint of LoRAMoE: experts balanced within types, and types tilted against each other.

Dou et al. 2023, "LoRAMoE: Alleviate World Knowledge Forgetting in Large Language Models via MoE-Style Plugin"
(arXiv:2312.09979). With p_{t,n} the weight of expert n on token t, for every routed linear map:

    Q_{m,n} = sum of p_{t,n} over the tokens t of example m                                                       (B1)
    Z_{m,n} = (1 + delta) Q_{m,n} if expert n is of the type of example m, else (1 - delta) Q_{m,n}               (B2)
    L       = Var(Z) / mean(Z)^2, the variance with divisor (entries - 1)                                         (B3)

The paper prints Var / mean; the authors' code has (B3), and so they ruled when asked. Making the variance of Z small
drives Q towards 1 / (1 +- delta), so experts that match an example are pushed *down* on it; `sign` "attract" has
1 - delta on a match. An example without type, or of a type that no expert has, matches none: plain balance.

Everything here is in at least float32, and per micro-batch; sums add up to those of the batch.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxsft.config import LoRAMoEConfig
from jaxsft.data.batch import TYPE, Batch
from jaxsft.objectives.terms import ratio

EPSILON = 1e-10  # the authors' code


def importance(weights: jax.Array, example_ids: jax.Array, slots: int) -> jax.Array:
    """(B1) of a linear map.

    Args:
      weights: [B, T, N], of the experts on each token.
      example_ids: int32 [B, T], 1..slots, 0 for tokens of no example.
      slots: E.

    Returns:
      [B, E, N]: of the example in each slot.
    """

    def row(weights: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(weights, ids, num_segments=slots + 1)[1:]

    return jax.vmap(row)(weights, example_ids)


def with_padding(example_ids: jax.Array) -> jax.Array:
    """Example ids [B, T] in which padding belongs to the last example of its row."""
    return jnp.where(example_ids == 0, jnp.max(example_ids, axis=-1, keepdims=True), example_ids)


def factors(batch: Batch, expert_types: Sequence[int], delta: float, sign: str) -> jax.Array:
    """float32 [B, E, N], the 1 +- delta of (B2)."""
    types = batch.extras.get(TYPE)
    if types is None:
        types = jnp.full(batch.extras["example_index"].shape, -1)
    match = jnp.asarray(types)[..., None] == jnp.asarray(expert_types)
    delta = delta if sign == "published" else -delta
    return jnp.where(match, 1.0 + delta, 1.0 - delta).astype(jnp.float32)


def imbalance(q: jax.Array, batch: Batch, config: LoRAMoEConfig, expert_types: Sequence[int]) -> jax.Array:
    """(B3), summed over the scopes of a micro-batch (see `scopes`) and over all linear maps.

    Args:
      q: [..., B, E, N], importances; leading axes are linear maps.
      batch: the rows.
      config: for `delta`, `form`, `sign`, `by_length` and `scope`.
      expert_types: of the N experts.
    """
    z = factors(batch, expert_types, config.delta, config.sign) * q
    if config.by_length:
        z = ratio(z, jax.lax.stop_gradient(jnp.sum(q, axis=-1, keepdims=True)))  # a token's weights sum to 1
    real = jnp.broadcast_to(_filled(batch)[..., None], z.shape[-3:])
    z, real = (_by_scope(x, config) for x in (z, real))
    return jnp.sum(dispersion(z, real, config.form))


def scopes(batch: Batch, config: LoRAMoEConfig) -> jax.Array:
    """float32 scalar, over how many scopes (B3) is taken: those with an example in them.

    `scope` "per_example" has one an example, "microbatch" one each `microbatch_rows` rows, "global" one in all.
    """
    return jnp.sum(jnp.any(_by_scope(_filled(batch)[..., None], config), axis=-1)).astype(jnp.float32)


def dispersion(z: jax.Array, real: jax.Array, form: str) -> jax.Array:
    """The squared coefficient of variation over the last axis, or with `form` "var_over_mean" variance over mean.

    Args:
      z: [..., entries].
      real: bool, broadcastable to `z`; other entries do not count.
      form: see above.

    Returns:
      [...]; 0 where fewer than two entries are real.
    """
    real = jnp.broadcast_to(real, z.shape)
    count = jnp.sum(real, axis=-1).astype(z.dtype)
    mean = ratio(jnp.sum(jnp.where(real, z, 0), axis=-1), count)
    squares = jnp.sum(jnp.where(real, jnp.square(z - mean[..., None]), 0), axis=-1)
    variance = ratio(squares, jnp.maximum(count - 1, 0))
    return variance / (jnp.square(mean) + EPSILON) if form == "cv_squared" else ratio(variance, mean)


def _filled(batch: Batch) -> jax.Array:
    """bool [B, E]: whether a slot holds an example."""
    return jnp.asarray(batch.extras["example_index"]) >= 0


def _by_scope(x: jax.Array, config: LoRAMoEConfig) -> jax.Array:
    """[..., B, E, N] -> [..., scopes, entries], or [..., B, E, N] as it is where each example is a scope."""
    if config.scope == "per_example":
        return x
    *lead, rows, slots, experts = x.shape
    size = config.microbatch_rows if config.scope == "microbatch" else rows
    return x.reshape(*lead, rows // size, size * slots * experts)
