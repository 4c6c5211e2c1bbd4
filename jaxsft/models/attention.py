"""Causal attention within segments: the reference, and the choice of a faster kernel where there is one."""

import jax
import jax.numpy as jnp

from jaxsft.models import splash

SHORTEST_RUN, MOST_RUNS = 128, 8  # queries of a run, runs of a row (each is compiled)
MASKED = -1e30  # finite, so that a row without any visible key has finite logits and gradients


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    window: int | None,
    soft_cap: float | None,
    scale: float,
    *,
    kv_segment_ids: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Grouped-query attention.

    A query sees a key iff the key is not later, both have the same positive segment id, and the key is nearer than
    `window`. Later and nearer are said of the index in the row: positions restart at every attention unit. With a cache
    (`kv_segment_ids`, `kv_positions`) they are said of `positions` and `kv_positions`.

    Args:
      q: [B, T, H, D], rotated.
      k: [B, S, K, D], rotated; K divides H, and S is T without a cache.
      v: [B, S, K, D].
      segment_ids: int32 [B, T], 0 in padding, whose outputs are 0.
      positions: int32 [B, T]; read only with a cache.
      window: see above; None is unlimited.
      soft_cap: cap * tanh(logits / cap), or None.
      scale: factor of the logits.
      kv_segment_ids: int32 [B, S] of a cache, 0 in empty slots.
      kv_positions: int32 [B, S] of a cache.
      implementation: "xla", or "auto": the splash kernel on TPUs where the shapes suit it
        (`jaxsft.models.splash.fits`), else XLA.

    Returns:
      [B, T, H, D] in the dtype of `v`.
    """
    if (kv_segment_ids is None) != (kv_positions is None):
        raise ValueError("give both kv_segment_ids and kv_positions, or neither")
    if implementation not in ("auto", "xla"):
        raise ValueError(f"unknown implementation {implementation!r}")
    if kv_segment_ids is None:
        if implementation == "auto" and splash.fits(q, k):
            return splash.splash_attention(q, k, v, segment_ids, window, soft_cap, scale)
        return _causal(q, k, v, segment_ids, window, soft_cap, scale)
    return _xla(q, k, v, (segment_ids, positions), (kv_segment_ids, kv_positions), window, soft_cap, scale)


def visible(queries: tuple[jax.Array, jax.Array], keys: tuple[jax.Array, jax.Array], window: int | None) -> jax.Array:
    """bool [B, T, S]: which keys a query sees; both sides are (segment ids, places in the row)."""
    (q_segments, q_places), (k_segments, k_places) = queries, keys
    distance = q_places[:, :, None] - k_places[:, None, :]
    seen = (q_segments[:, :, None] == k_segments[:, None, :]) & (q_segments[:, :, None] > 0) & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def _causal(q, k, v, segment_ids, window, soft_cap, scale):
    """Runs of queries one after the other, each with the keys that any of them can see: half the work of all pairs."""
    length = q.shape[1]
    index = jnp.arange(length, dtype=jnp.int32)[None]
    run = max(SHORTEST_RUN, -(-length // MOST_RUNS))
    mixed = []
    for start in range(0, length, run):
        stop = min(start + run, length)
        queries, keys = slice(start, stop), slice(0 if window is None else max(start - window + 1, 0), stop)
        places = [(segment_ids[:, part], index[:, part]) for part in (queries, keys)]
        mixed.append(_xla(q[:, queries], k[:, keys], v[:, keys], *places, window, soft_cap, scale))
    return jnp.concatenate(mixed, axis=1) if len(mixed) > 1 else mixed[0]


def _xla(q, k, v, queries, keys, window, soft_cap, scale):
    """The heads of a group share their keys as rows of one product; the softmax is divided out after it."""
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q = q.reshape(batch, length, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, head_dim)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    logits = jnp.einsum("bkqd,bksd->bkqs", q, k, preferred_element_type=wide) * scale
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    logits = logits.reshape(batch, kv_heads, -1, length, k.shape[2])
    logits = jnp.where(visible(queries, keys, window)[:, None, None], logits, MASKED)
    shares = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    shares = shares.reshape(batch, kv_heads, -1, k.shape[2])
    mixed = jnp.einsum("bkqs,bksd->bkqd", shares.astype(v.dtype), v, preferred_element_type=wide)
    mixed = (mixed / jnp.sum(shares, axis=-1, keepdims=True)).astype(v.dtype)
    mixed = mixed.reshape(batch, kv_heads, -1, length, head_dim).transpose(0, 3, 1, 2, 4)
    mixed = mixed.reshape(batch, length, heads, head_dim)
    return jnp.where(queries[0][:, :, None, None] > 0, mixed, 0)  # padding saw nothing, so took all alike
