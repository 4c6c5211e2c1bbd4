"""Causal attention within segments: the reference, and the choice of a faster kernel where there is one."""

import jax
import jax.numpy as jnp

from jaxsft.models import splash

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
        index = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
        return _xla(q, k, v, (segment_ids, index), (segment_ids, index), window, soft_cap, scale)
    return _xla(q, k, v, (segment_ids, positions), (kv_segment_ids, kv_positions), window, soft_cap, scale)


def visible(queries: tuple[jax.Array, jax.Array], keys: tuple[jax.Array, jax.Array], window: int | None) -> jax.Array:
    """bool [B, T, S]: which keys a query sees; both sides are (segment ids, places in the row)."""
    (q_segments, q_places), (k_segments, k_places) = queries, keys
    distance = q_places[:, :, None] - k_places[:, None, :]
    seen = (q_segments[:, :, None] == k_segments[:, None, :]) & (q_segments[:, :, None] > 0) & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def _xla(q, k, v, queries, keys, window, soft_cap, scale):
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    grouped = q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    logits = jnp.einsum("btkgd,bskd->bkgts", grouped, k, preferred_element_type=wide) * scale
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    mask = visible(queries, keys, window)[:, None, None]
    probs = jax.nn.softmax(jnp.where(mask, logits, MASKED), axis=-1)
    probs = jnp.where(mask, probs, 0).astype(v.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", probs, v).reshape(q.shape)
