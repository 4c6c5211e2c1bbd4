"""The dense definitions, written with full logits and `jax.nn.log_softmax`, to which the chunked ones are held."""

import jax
import jax.numpy as jnp
import numpy as np


def head(params, hidden):
    """A soft-capped linear head, so that more than a matrix product is differentiated."""
    logits = (hidden @ params["kernel"].astype(hidden.dtype)).astype(jnp.promote_types(hidden.dtype, jnp.float32))
    return 5 * jnp.tanh(logits / 5)


def problem(batch=3, length=10, width=4, vocab=11, dtype=np.float32, seed=0):
    """Head parameters, hidden states, targets, ragged weights (one row has none) and the second label of a mixture."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(size=(batch, length)) * (rng.uniform(size=(batch, length)) > 0.4)
    weights[1] = 0
    return {
        "params": {"kernel": rng.normal(size=(width, vocab)).astype(dtype)},
        "hidden": rng.normal(size=(batch, length, width)).astype(dtype),
        "targets": rng.integers(0, vocab, (batch, length), np.int32),
        "weights": weights.astype(dtype),
        "second": rng.integers(0, vocab, (batch, length), np.int32),
        "lam": rng.uniform(size=(batch, length)).astype(dtype),
    }


def at(log_p, tokens):
    return jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]


def losses(logits, targets, second=None, lam=1.0, z_loss=0.0, label_smoothing=0.0):
    """Cross-entropy [B, T] to the full label distribution, which is built."""
    vocab = logits.shape[-1]
    soft = jax.nn.one_hot(targets, vocab, dtype=logits.dtype)
    if second is not None:
        lam = jnp.broadcast_to(lam, targets.shape)[..., None]
        soft = lam * soft + (1 - lam) * jax.nn.one_hot(second, vocab, dtype=logits.dtype)
    soft = (1 - label_smoothing) * soft + label_smoothing / vocab
    ce = -jnp.sum(soft * jax.nn.log_softmax(logits), axis=-1)
    return ce + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
