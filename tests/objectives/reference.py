"""The dense definitions, written with full logits and `jax.nn.log_softmax`, to which the chunked ones are held."""

import jax
import jax.numpy as jnp


def head(params, hidden):
    """A soft-capped linear head, so that more than a matrix product is differentiated."""
    logits = (hidden @ params["kernel"].astype(hidden.dtype)).astype(jnp.promote_types(hidden.dtype, jnp.float32))
    return 5 * jnp.tanh(logits / 5)


def problem(batch=3, length=10, width=4, vocab=11, dtype=jnp.float32, seed=0):
    """Head parameters, hidden states, targets, ragged weights (one row has none) and the second label of a mixture."""
    keys = jax.random.split(jax.random.key(seed), 7)
    weights = jax.random.uniform(keys[3], (batch, length), dtype) * (jax.random.uniform(keys[4], (batch, length)) > 0.4)
    return {
        "params": {"kernel": jax.random.normal(keys[0], (width, vocab), dtype)},
        "hidden": jax.random.normal(keys[1], (batch, length, width), dtype),
        "targets": jax.random.randint(keys[2], (batch, length), 0, vocab),
        "weights": weights.at[1].set(0),
        "second": jax.random.randint(keys[5], (batch, length), 0, vocab),
        "lam": jax.random.uniform(keys[6], (batch, length), dtype),
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
