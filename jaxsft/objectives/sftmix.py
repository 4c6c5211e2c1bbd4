"""SFTMix: fine-tuning regularised by mixtures of confident and unconfident examples (Jin et al., arXiv:2410.05248).

For a pair of a confident example c and an unconfident one u, Z_n the last hidden state from which their n-th supervised
target is predicted, Y_n that target and lam ~ Beta(alpha, alpha):

    Z~_n = lam Z^c_n + (1 - lam) Z^u_n,    Y~_n = lam Y^c_n + (1 - lam) Y^u_n,    n = 1..min(N_c, N_u)           (M3)
    l_mix(pair) = sum_n H(Y~_n, softmax(head(Z~_n)))                                                             (M4)
    L = l_NTP + mu l_mix                                                                                         (M5)

l_NTP is the weighted mean over all supervised targets of both, l_mix the mean over all mixed positions (M6, the paper
does not say). The gradient flows into both states and the head; lam and labels are constants. Mixed positions count
alike, whatever the loss weights of their targets.

The states come from the one forward pass that l_NTP needs, and both losses from one sweep of the head.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsft.data.batch import Batch
from jaxsft.objectives.cross_entropy import weighted_cross_entropy
from jaxsft.objectives.examples import target_counts
from jaxsft.objectives.figures import token_metrics, token_sums
from jaxsft.objectives.objective import Base, Model
from jaxsft.objectives.terms import Term, ratio


@dataclasses.dataclass(frozen=True)
class SFTMix(Base):
    """The objective; see `jaxsft.config.ObjectiveConfig` for its fields."""

    mu: float = 0.2
    mix_alpha: float = 0.5
    lambda_scope: str = "pair"
    mix_hidden: str = "post_norm"
    mix_reduction: str = "mean"
    chunk_size: int = 1024

    grouping = "mixup"

    def denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """The sum of weights, and the number of mixed positions."""
        mixed = jnp.sum(_mixed_per_slot(batch)).astype(jnp.float32)
        return {"supervised": jnp.sum(jnp.asarray(batch.weights)), "mixed": mixed}

    def __call__(
        self, model: Model, batch: Batch, denominators: dict[str, jax.Array]
    ) -> tuple[dict[str, Term], dict[str, jax.Array]]:
        """One term, `sftmix`, whose sum holds the mixed losses too, and sums over supervised and mixed tokens."""
        output, length = model(batch), batch.tokens.shape[1]
        hidden, targets, weights, mix = output.hidden, jnp.asarray(batch.targets), jnp.asarray(batch.weights), None
        if self.mu:
            plan = plan_mixture(batch)
            lam = draw_lam(self.lambda_scope, self.mix_alpha, model.step_key, batch, plan)
            share = self.mu * ratio(denominators["supervised"], denominators["mixed"])
            share = self.mu if self.mix_reduction == "sum" else share
            post = self.mix_hidden == "post_norm"
            mixture = mix_states(output.hidden if post else output.unnormed, plan, lam)
            mixture = mixture if post else output.norm(mixture)
            firsts, seconds = _take(targets, plan.confident), _take(targets, plan.unconfident)
            hidden = jnp.concatenate([hidden, mixture], axis=1)
            # A plain token is its own partner: 1 * z + 0 * z, where 0 times another's infinite logit would be NaN.
            mix = jnp.concatenate([targets, seconds], axis=1), jnp.pad(lam, ((0, 0), (length, 0)), constant_values=1.0)
            weights = jnp.concatenate([weights, jnp.where(plan.real, share, 0)], axis=1)
            targets = jnp.concatenate([targets, firsts], axis=1)
        loss, tokens = weighted_cross_entropy(
            output.head, output.head_params, hidden, targets, weights, mix=mix, chunk_size=self.chunk_size
        )
        sums = token_sums(batch, tokens.log_prob[:, :length], tokens.hit[:, :length])
        if self.mu:
            sums |= {
                "mixture_sum": jnp.sum(tokens.ce[:, length:]),
                "mixed_tokens": jnp.sum(plan.real, dtype=jnp.float32),
            }
        return {"sftmix": Term(1.0, loss, denominators["supervised"])}, sums

    def metrics(self, sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """See `token_metrics`; besides `mixture` (nats per mixed position) and `mixed_tokens`, unless mu is 0."""
        metrics = token_metrics(sums)
        if "mixture_sum" in sums:
            metrics["mixture"] = ratio(sums["mixture_sum"], sums["mixed_tokens"])
            metrics["mixed_tokens"] = sums["mixed_tokens"]
        return metrics


class Mixture(NamedTuple):
    """Which positions of a row are mixed; M = T // 2, which pairs never exceed. Positions hold predicting states.

    Attributes:
      confident: int32 [B, M], position in its row of the first state and target.
      unconfident: int32 [B, M], of the second.
      slot: int32 [B, M], example slot of the confident one.
      place: int32 [B, M], which supervised target of its example it is, from 0.
      real: bool [B, M], False behind the last.
    """

    confident: jax.Array
    unconfident: jax.Array
    slot: jax.Array
    place: jax.Array
    real: jax.Array


def plan_mixture(batch: Batch) -> Mixture:
    """Lines up the n-th supervised targets of both examples of every pair, as far as the shorter goes.

    All within the row, so nothing moves between devices that share out the rows.
    """
    mask = jnp.asarray(batch.weights) != 0
    counts, mixed = target_counts(batch).astype(jnp.int32), _mixed_per_slot(batch)

    def row(mask: jax.Array, counts: jax.Array, mixed: jax.Array) -> Mixture:
        supervised = jnp.argsort(~mask, stable=True).astype(jnp.int32)  # examples follow each other in a row
        before, ends = jnp.cumsum(counts) - counts, jnp.cumsum(mixed)
        m = jnp.arange(len(mask) // 2)
        slot = jnp.searchsorted(ends, m, side="right", method="compare_all").clip(0, len(counts) - 1)
        place = m - (ends - mixed)[slot]
        last = len(mask) - 1
        at = lambda slot: supervised[(before[slot.clip(0, len(counts) - 1)] + place).clip(0, last)]
        return Mixture(at(slot), at(slot + 1), slot, place, m < ends[-1])

    return jax.vmap(row)(mask, counts, mixed)


def mix_states(hidden: jax.Array, plan: Mixture, lam: jax.Array) -> jax.Array:
    """[B, M, D] in the dtype of `hidden`, mixed in at least float32.

    Args:
      hidden: [B, T, D].
      plan: which states.
      lam: float32 [B, M], the shares of the confident ones.
    """
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    confident, unconfident = (_take(hidden, at).astype(wide) for at in (plan.confident, plan.unconfident))
    lam = lam[..., None].astype(wide)
    return (lam * confident + (1 - lam) * unconfident).astype(hidden.dtype)


def draw_lam(scope: str, alpha: float, key: jax.Array, batch: Batch, plan: Mixture) -> jax.Array:
    """float32 [B, M], the confident example's share of every mixed position.

    The key is folded with the pair's confident example, so a draw depends neither on the row that the pair stands in
    nor on how the batch is cut.

    Args:
      scope: "pair", "token" or "batch": what shares a draw.
      alpha: of Beta(alpha, alpha).
      key: the step's.
      batch: the rows.
      plan: their mixed positions.
    """
    if scope == "batch":
        return jnp.broadcast_to(beta(key, alpha), plan.slot.shape)
    folded = jax.vmap(jax.vmap(lambda i: jax.random.fold_in(key, i)))
    pairs = folded(jnp.asarray(batch.extras["example_index"]))
    if scope == "pair":
        return _take(jax.vmap(jax.vmap(lambda key: beta(key, alpha)))(pairs), plan.slot)
    draw = lambda key, place: beta(jax.random.fold_in(key, place), alpha)
    return jax.vmap(jax.vmap(draw))(jax.vmap(lambda keys, slot: keys[slot])(pairs, plan.slot), plan.place)


def beta(key: jax.Array, alpha: float) -> jax.Array:
    """A draw from Beta(alpha, alpha), float32; for alpha = 1/2 by the arcsine law, lam = sin^2(pi U / 2)."""
    if alpha == 0.5:
        return jnp.sin(0.5 * jnp.pi * jax.random.uniform(key)) ** 2
    return jax.random.beta(key, alpha, alpha)


def _mixed_per_slot(batch: Batch) -> jax.Array:
    """int32 [B, E], the mixed positions of the pair that begins in each slot; 0 where none does."""
    counts, member = target_counts(batch).astype(jnp.int32), jnp.asarray(batch.extras["member"])
    following = lambda x, empty: jnp.pad(x[:, 1:], ((0, 0), (0, 1)), constant_values=empty)
    pair = (member == 0) & (following(member, -1) == 1)
    return jnp.where(pair, jnp.minimum(counts, following(counts, 0)), 0)


def _take(x: jax.Array, positions: jax.Array) -> jax.Array:
    """x[b, positions[b, m]], local to each row."""
    return jax.vmap(lambda row, at: row.at[at].get(mode="promise_in_bounds"))(x, positions)
