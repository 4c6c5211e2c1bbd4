"""From tokens to the examples they belong to, and back; an example never leaves its row."""

import jax
import jax.numpy as jnp

from jaxsft.data.batch import Batch


def sum_by_example(values: jax.Array, batch: Batch) -> jax.Array:
    """Sums [B, T] over the tokens of each example: [B, E], slot e - 1 for example id e."""

    def row(values: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, ids, num_segments=batch.num_slots + 1)[1:]

    return jax.vmap(row)(jnp.asarray(values), jnp.asarray(batch.example_ids))


def spread_over_tokens(values: jax.Array, batch: Batch) -> jax.Array:
    """Gives each token the value of its example: [B, T] from [B, E], and 0 in padding."""
    padded = jnp.pad(values, ((0, 0), (1, 0)))
    return jnp.take_along_axis(padded, jnp.asarray(batch.example_ids), axis=1)


def target_counts(batch: Batch) -> jax.Array:
    """float32 [B, E], how many targets of each example have a loss weight."""
    return sum_by_example((jnp.asarray(batch.weights) != 0).astype(jnp.float32), batch)
