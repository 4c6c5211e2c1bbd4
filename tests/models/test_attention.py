"""Attention against a plain loop over queries and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.models import attention as attention_module
from jaxsft.models.attention import attention

B, T, H, K, D = 2, 12, 4, 2, 8
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12], np.int32)


@pytest.fixture(scope="module")
def qkv() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(B, T, heads, D)).astype(np.float32) for heads in (H, K, K))


def by_hand(q, k, v, segments, window, soft_cap, scale):
    out = np.zeros((B, T, H, D))
    for b, t, h in np.ndindex(B, T, H):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t] > 0 and (window is None or t - s < window)]
        if seen:
            logits = np.array([q[b, t, h] @ k[b, s, h // (H // K)] for s in seen], np.float64) * scale
            logits = soft_cap * np.tanh(logits / soft_cap) if soft_cap else logits
            probs = np.exp(logits - logits.max())
            out[b, t, h] = (probs / probs.sum()) @ v[b, seen, h // (H // K)]
    return out


@pytest.mark.parametrize("run", [5, 128])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_attention_equals_a_loop_over_pairs(qkv, run, window, soft_cap, monkeypatch):
    monkeypatch.setattr(attention_module, "SHORTEST_RUN", run)  # several runs of queries, the last one short
    positions = np.zeros_like(SEGMENTS)  # must not matter: places in the row decide
    result = jax.jit(lambda q, k, v: attention(q, k, v, SEGMENTS, positions, window, soft_cap, 0.5))(*qkv)
    np.testing.assert_allclose(result, by_hand(*qkv, SEGMENTS, window, soft_cap, 0.5), atol=1e-5)


def test_padding_gives_zeros_and_finite_gradients(qkv):
    apply = jax.jit(lambda qkv: attention(*qkv, SEGMENTS, SEGMENTS, None, None, 1.0))
    assert not np.any(apply(qkv)[0, 9:])
    for gradient in jax.jit(jax.grad(lambda qkv: jnp.sum(jnp.square(apply(qkv)))))(qkv):
        assert np.all(np.isfinite(gradient))
        assert not np.any(gradient[0, 9:])


def test_keys_of_a_cache_are_placed_by_their_positions(qkv):
    q, k, v = qkv
    order = np.random.default_rng(1).permutation(T)
    ones, places = np.ones((B, T), np.int32), np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    attend = jax.jit(attention, static_argnames=("window", "soft_cap", "scale"))
    whole = attend(q, k, v, ones, places, 4, None, 1.0)
    cached = {"kv_segment_ids": ones, "kv_positions": places[:, order]}
    one = attend(q[:, 7:8], k[:, order], v[:, order], ones[:, :1], places[:, 7:8], 4, None, 1.0, **cached)
    np.testing.assert_allclose(one, whole[:, 7:8], atol=1e-6)


def test_bfloat16_logits_are_float32(qkv):
    low = [jnp.asarray(x, jnp.bfloat16) for x in qkv]
    exact = by_hand(*[np.asarray(x, np.float32) for x in low], SEGMENTS, None, None, 4.0)
    result = jax.jit(lambda q, k, v: attention(q, k, v, SEGMENTS, SEGMENTS, None, None, 4.0))(*low)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(result, exact, atol=0.03)
