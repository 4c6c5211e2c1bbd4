"""Which tuned weights of a matrix go, and which come: pure functions of one matrix, of static shapes.

All lists are of [k] with padding at their end (`jaxsft.adapters.spiel.kernel`); how many may go, n, is a traced number
and enters through ranks. What goes are the n smallest deltas. What comes is the best of the candidates that are not
kept; one that was to go and would come again stays as it is. Slots and newcomers are paired in order, the smallest
delta with the best candidate, and where there are fewer newcomers than slots the rest of the slots stay too.
"""

import jax
import jax.numpy as jnp


def by_gradient(
    idx: jax.Array, delta: jax.Array, candidates: jax.Array, scores: jax.Array, n: jax.Array, size: int
) -> jax.Array:
    """SpIEL-AG: the candidates come by their accumulated gradients.

    Args:
      idx: int32 [k], ascending.
      delta: [k].
      candidates: int32 [c], distinct; tuned weights may be among them.
      scores: [c], the size of their accumulated gradients.
      n: int32 [], how many may go.
      size: entries of the matrix.

    Returns:
      int32 [k]: the candidate (its place in the list) that each slot takes; -1 where it stays.
    """
    dropped = _first(jnp.abs(delta), idx < size, n)
    slot = jnp.clip(jnp.searchsorted(idx, candidates), 0, len(idx) - 1)
    tuned = (idx[slot] == candidates) & (candidates < size)
    grown = _first(-scores, (candidates < size) & ~(tuned & ~dropped[slot]), n)
    again = jnp.zeros_like(dropped).at[jnp.where(grown & tuned, slot, len(idx))].set(True, mode="drop")
    return _pair(jnp.abs(delta), dropped & ~again, -scores, grown & ~tuned)


def by_momentum(
    idx: jax.Array, delta: jax.Array, rows: jax.Array, columns: jax.Array, n: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """SpIEL-MA: weights come by the product of their row's and column's sums; those that are tuned now do not.

    Args:
      idx: int32 [k], ascending.
      delta: [k].
      rows: [in], SM3's.
      columns: [out].
      n: int32 [], how many go.
      count: tuned weights, less the padding.

    Returns:
      The positions of the best, int32 [count], and which of them each slot takes, as of `by_gradient`.
    """
    scores = rows[:, None] * columns
    scores = scores.at[idx // len(columns), idx % len(columns)].set(-1.0, mode="drop").reshape(-1)
    best, positions = jax.lax.top_k(scores, count)
    grown = (best >= 0) & (jnp.arange(count) < n)
    dropped = _first(jnp.abs(delta), idx < scores.size, n)
    return positions.astype(jnp.int32), _pair(jnp.abs(delta), dropped, jnp.arange(count), grown)


def _first(keys: jax.Array, allowed: jax.Array, n: jax.Array) -> jax.Array:
    """bool [k]: the n smallest keys among those allowed, all of them where there are fewer."""
    return (_ranks(_last_unless(allowed, keys)) < n) & allowed


def _pair(slot_keys: jax.Array, slots: jax.Array, keys: jax.Array, newcomers: jax.Array) -> jax.Array:
    """For each slot the place of the newcomer of the same rank, or -1."""
    pairs = jnp.minimum(jnp.sum(slots), jnp.sum(newcomers))
    order = jnp.argsort(_last_unless(newcomers, keys))
    rank = _ranks(_last_unless(slots, slot_keys))
    return jnp.where(slots & (rank < pairs), order[jnp.minimum(rank, len(order) - 1)], -1).astype(jnp.int32)


def _last_unless(allowed: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.where(allowed, keys.astype(jnp.float32), jnp.inf)


def _ranks(keys: jax.Array) -> jax.Array:
    order = jnp.argsort(keys)
    return jnp.zeros_like(order).at[order].set(jnp.arange(len(keys)), unique_indices=True)
