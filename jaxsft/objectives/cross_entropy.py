"""The weighted cross-entropy, per-token log-probabilities and divergences, without ever holding the logits.

With logits z of a token, lse = log sum_v exp z_v, and labels a (and b):

    ce            = lse - z[a]
    two labels    = lse - lam z[a] - (1 - lam) z[b]     the cross-entropy to lam onehot(a) + (1 - lam) onehot(b)
    smoothing     = (1 - eps) ce + eps (lse - mean z)   (Szegedy et al. 2016, arXiv:1512.00567)
    z-loss        = ce + zeta lse^2                     (Chowdhery et al. 2022, arXiv:2204.02311, section 5)

All are functions of a few statistics of z, computed over chunks of tokens (see `sweep`) in at least float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsft.objectives.sweep import Head, Values, losses, per_token, weighted_sum


class TokenLosses(NamedTuple):
    """What is known of every token, [B, T]; without gradient, and 0 (False) where the weight is 0.

    Attributes:
      ce: the loss before its weight: with the second label, smoothing and z-loss.
      log_prob: natural logarithm of the target's probability.
      lse: the log-partition.
      hit: bool, the target is the likeliest token.
    """

    ce: jax.Array
    log_prob: jax.Array
    lse: jax.Array
    hit: jax.Array


def weighted_cross_entropy(
    head: Head,
    head_params: Any,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    mix: tuple[jax.Array, jax.Array] | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk_size: int = 1024,
) -> tuple[jax.Array, TokenLosses]:
    """The sum over tokens of weight * loss; gradients are computed in the forward sweep.

    Args:
      head: `head(head_params, hidden[..., D]) -> logits[..., V]`, any differentiable function of its two arguments
        that treats tokens alike; it must not close over anything that is differentiated.
      head_params: a tree. Only leaves that are being differentiated cost a gradient.
      hidden: [B, T, D].
      targets: int [B, T].
      weights: [B, T] of any sign. Tokens of weight 0 are skipped: they cost nothing and their `hidden` is never read.
        Weights have no gradient, and differentiating them is an error.
      mix: (second targets int [B, T], lam [B, T] or scalar) for the two-label form.
      z_loss: zeta.
      label_smoothing: eps.
      chunk_size: tokens per data-parallel device whose logits exist at once.

    Returns:
      The sum, a scalar differentiable with respect to `head_params` and `hidden`, and per-token figures.

    Raises:
      ValueError: if the weights are being differentiated.
    """
    measure, integrand, labels = _loss(targets, mix, z_loss, label_smoothing)
    loss, values = weighted_sum(head, measure, integrand, head_params, hidden, labels, weights, chunk_size)
    ce = jax.lax.stop_gradient(integrand(values, labels))
    return loss, TokenLosses(ce, values["target"] - values["lse"], values["lse"], values["hit"] > 0)


def cross_entropies(
    head: Head,
    head_params: Any,
    hidden: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    mix: tuple[jax.Array, jax.Array] | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk_size: int = 1024,
) -> tuple[jax.Array, TokenLosses]:
    """The loss of every token, for losses that weigh tokens by what the model itself says of them.

    With a frozen head it costs what `weighted_cross_entropy` costs; with a trained one a product more.

    Args:
      mask: bool [B, T]; tokens where it is False are skipped, and their loss is 0.
      **: all other arguments as for `weighted_cross_entropy`.

    Returns:
      [B, T], differentiable with respect to `head_params` and `hidden`, and per-token figures without gradient.
    """
    measure, integrand, labels = _loss(targets, mix, z_loss, label_smoothing)
    ce, values = losses(head, measure, integrand, head_params, hidden, labels, mask, chunk_size)
    figures = TokenLosses(jax.lax.stop_gradient(ce), values["target"] - values["lse"], values["lse"], values["hit"] > 0)
    return ce, figures


def token_log_probs(
    head: Head,
    head_params: Any,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    mask: jax.Array | None = None,
    chunk_size: int = 1024,
    entropy: bool = False,
) -> Values:
    """Log-probabilities of the targets, differentiable token by token: the backward pass applies the head once more.

    Args:
      head: as for `weighted_cross_entropy`.
      head_params: likewise.
      hidden: [B, T, D].
      targets: int [B, T].
      mask: bool [B, T]; tokens where it is False are skipped and 0 in all results.
      chunk_size: as for `weighted_cross_entropy`.
      entropy: whether to compute it.

    Returns:
      Arrays [B, T]: `log_prob`, `lse`, with `entropy` that of the distribution in nats (all three differentiable), and
      `hit` (bool).
    """
    active = jnp.ones(targets.shape, bool) if mask is None else mask
    values = per_token(head, Statistics(entropy=entropy), head_params, hidden, {"target": targets}, active, chunk_size)
    result = {"log_prob": values["target"] - values["lse"], "lse": values["lse"], "hit": values["hit"] > 0}
    return result | ({"entropy": values["entropy"]} if entropy else {})


def token_kl(
    head_p: Head,
    head_params_p: Any,
    hidden_p: jax.Array,
    head_q: Head,
    head_params_q: Any,
    hidden_q: jax.Array,
    *,
    mask: jax.Array | None = None,
    chunk_size: int = 1024,
) -> jax.Array:
    """KL(p || q) of two models' next-token distributions in nats, [B, T], differentiable in q; p is held fixed.

    Args:
      head_p: the first model's head; heads, parameters and hidden states as for `weighted_cross_entropy`.
      head_params_p: its parameters; without gradient.
      hidden_p: [B, T, Dp]; without gradient.
      head_q: the second model's, over the same vocabulary.
      head_params_q: its parameters.
      hidden_q: [B, T, Dq].
      mask: bool [B, T]; tokens where it is False are skipped and 0.
      chunk_size: tokens per data-parallel device whose logits (of both models) exist at once.
    """

    def head(params, hidden):
        return head_p(params[0], hidden[0]), head_q(params[1], hidden[1])

    params = jax.lax.stop_gradient(head_params_p), head_params_q
    hidden = jax.lax.stop_gradient(hidden_p), hidden_q
    active = jnp.ones(hidden_q.shape[:2], bool) if mask is None else mask
    return per_token(head, Divergence(), params, hidden, {}, active, chunk_size)["kl"]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A `Measure`: log-partition, target's logit and whether it is the largest; on request three more.

    Reductions over the vocabulary only (targets are found by comparison with an iota), so that a vocabulary split over
    devices costs a sum of [tokens] numbers and no gathered logits.

    Attributes:
      second: the logit of a second label.
      mean: the mean logit.
      entropy: the entropy of the distribution.
    """

    second: bool = False
    mean: bool = False
    entropy: bool = False

    def values(self, logits: jax.Array, labels: Values) -> Values:
        """The statistics [...] of logits [..., V]."""
        z, token = _upcast(logits), _tokens(logits)
        top, lse = _log_sum_exp(z)
        first = jnp.min(jnp.where(z == top[..., None], token, z.shape[-1]), axis=-1)  # argmax, as a plain reduction
        values = {
            "lse": lse,
            "target": _logit_of(z, labels["target"]),
            "hit": (first == labels["target"]).astype(z.dtype),
        }
        if self.second:
            values["second"] = _logit_of(z, labels["second"])
        if self.mean:
            values["mean"] = jnp.mean(z, axis=-1)
        if self.entropy:
            log_p = z - lse[..., None]
            values["entropy"] = -jnp.sum(_times(jnp.exp(log_p), log_p), axis=-1)
        return values

    def pullback(self, logits: jax.Array, labels: Values, values: Values, cotangents: Values) -> jax.Array:
        """d lse/dz = p;  d z[a]/dz = onehot(a);  d mean/dz = 1/V;  d entropy/dz = -p (log p + entropy)."""
        z, token = _upcast(logits), _tokens(logits)
        log_p = z - values["lse"][..., None]
        p = jnp.exp(log_p)
        by = {name: c[..., None] for name, c in cotangents.items()}
        dz = p * by["lse"] + jnp.where(token == labels["target"][..., None], by["target"], 0)
        if self.second:
            dz += jnp.where(token == labels["second"][..., None], by["second"], 0)
        if self.mean:
            dz += by["mean"] / z.shape[-1]
        if self.entropy:
            dz -= by["entropy"] * _times(p, log_p + values["entropy"][..., None])
        return dz.astype(logits.dtype)


@dataclasses.dataclass(frozen=True)
class Divergence:
    """A `Measure` of two models' logits: KL(p || q) = sum_v p_v (log p_v - log q_v), differentiable in q."""

    def values(self, logits: tuple[jax.Array, jax.Array], labels: Any) -> Values:
        """KL [...] of a pair of logits [..., V]."""
        log_p, log_q = (_log_softmax(z) for z in logits)
        return {"kl": jnp.sum(_times(jnp.exp(log_p), log_p - log_q), axis=-1)}

    def pullback(self, logits: tuple[jax.Array, jax.Array], labels: Any, values: Values, cotangents: Values) -> Any:
        """d KL/dz_q = q - p, and none for p."""
        p, q = (jnp.exp(_log_softmax(z)) for z in logits)
        dz = cotangents["kl"][..., None] * (q - p)
        return jnp.zeros_like(logits[0]), dz.astype(logits[1].dtype)


def _loss(
    targets: jax.Array, mix: tuple[jax.Array, jax.Array] | None, z_loss: float, label_smoothing: float
) -> tuple[Statistics, Callable[[Values, Values], jax.Array], Values]:
    """What the loss needs of the logits, the loss as a function of it, and its labels."""
    labels = {"target": targets}
    if mix is not None:
        labels |= {"second": mix[0], "lam": jnp.broadcast_to(mix[1], targets.shape)}

    def integrand(values: Values, labels: Values) -> jax.Array:
        likely = values["target"]
        if mix is not None:
            lam = labels["lam"].astype(likely.dtype)
            likely = lam * likely + (1 - lam) * values["second"]
        ce = values["lse"] - likely
        if label_smoothing:
            ce = (1 - label_smoothing) * ce + label_smoothing * (values["lse"] - values["mean"])
        if z_loss:
            ce = ce + z_loss * values["lse"] ** 2
        return ce

    return Statistics(second=mix is not None, mean=bool(label_smoothing)), integrand, labels


def _upcast(logits: jax.Array) -> jax.Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _tokens(logits: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


def _logit_of(z: jax.Array, token: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(_tokens(z) == token[..., None], z, 0), axis=-1)


def _log_sum_exp(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    top = jnp.max(z, axis=-1)
    return top, top + jnp.log(jnp.sum(jnp.exp(z - top[..., None]), axis=-1))


def _log_softmax(logits: jax.Array) -> jax.Array:
    z = _upcast(logits)
    return z - _log_sum_exp(z)[1][..., None]


def _times(p: jax.Array, x: jax.Array) -> jax.Array:
    """p x, and 0 where p is 0, even if x is infinite: a logit of minus infinity forbids a token."""
    return jnp.where(p > 0, p * x, 0)
