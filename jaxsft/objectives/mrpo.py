"""Multi-reference preference optimisation: DPO against a mean of several references (Le et al., arXiv:2405.16388).

The objective E[r] - beta sum_k alpha_k KL(p || p_k), with a Jensen bound in place of the sum, has DPO's closed form for
one virtual reference, the weighted harmonic mean of the references' probabilities of the whole answer:

    log p~(y | x) = -log sum_k alpha_k / p_k(y | x)

Before it is taken, the log-probabilities of references k > 0 are clipped to a band around those of the first, the
anchor: ((1 + eps) log p_0, (1 - eps) log p_0). The weights are by default, for each pair, in proportion to how far each
reference, unclipped, tells the answers apart, |log p_k(y_w | x) - log p_k(y_l | x)|.

The authors' code mixes two references, and there gives each the other's weight (`swap_weights`). The general number of
references is the natural extension. Whether any of it helps is disputed (arXiv:2512.10040).
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxsft.errors import UserError
from jaxsft.objectives.preference import Pair, Preference, by_pair, check_label_smoothing, preference_loss
from jaxsft.objectives.terms import ratio


def virtual_reference(log_probs: jax.Array, weights: jax.Array) -> jax.Array:
    """log p~ of each answer, [...]: the log of the weighted harmonic mean of probabilities.

    Args:
      log_probs: [K, ...], of whole answers under each reference, in nats.
      weights: alpha, [K] or [K, ...], of sum 1 over K.
    """
    weights = jnp.asarray(weights).reshape(weights.shape + (1,) * (log_probs.ndim - weights.ndim))
    return -jax.nn.logsumexp(jnp.log(weights) - log_probs, axis=0)


def clip_to_anchor(
    chosen: jax.Array, rejected: jax.Array, epsilon: float, adaptive: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Both answers' log-probabilities [K, ...], clipped to the band around those of the first reference.

    Args:
      chosen: [K, ...], of y_w, in nats.
      rejected: [K, ...], of y_l.
      epsilon: the half width of the band, as a share of the anchor's log-probability.
      adaptive: divide epsilon between the answers in proportion to |log p_0 + log p_k| of each; else both have all.
    """
    sizes = [jnp.abs(x[:1] + x) for x in (chosen, rejected)]

    def clip(log_probs: jax.Array, size: jax.Array) -> jax.Array:
        half_width = epsilon * ratio(size, sizes[0] + sizes[1]) if adaptive else epsilon
        return jnp.clip(log_probs, (1 + half_width) * log_probs[:1], (1 - half_width) * log_probs[:1])

    return clip(chosen, sizes[0]), clip(rejected, sizes[1])


def confidence_weights(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """alpha [K, ...]: each reference's share of the sum over references of |log p_k(y_w) - log p_k(y_l)|.

    The anchor has what the others leave, which is all where none tells the answers apart.
    """
    gaps = jnp.abs(chosen - rejected)
    others = gaps[1:] / (jnp.sum(gaps, axis=0) + 1e-6)
    anchor = jnp.maximum(1 - jnp.sum(others, axis=0, keepdims=True), 0)
    return jnp.concatenate([anchor, others])


@dataclasses.dataclass(frozen=True)
class MRPO(Preference):
    """The objective; see `jaxsft.config.ObjectiveConfig` for its fields. With one reference it is DPO."""

    label_smoothing: float = 0.0
    reference_weights: tuple[float, ...] = ()
    reference_clip: float = 0.1
    adaptive_clip: bool = True
    swap_weights: bool = False

    def __post_init__(self):
        """Refuses weights that are none."""
        super().__post_init__()
        check_label_smoothing(self.label_smoothing)
        weights = self.reference_weights
        if weights and (min(weights) < 0 or abs(sum(weights) - 1) > 1e-6):
            raise UserError(
                f"config.objective.reference_weights is {weights}; weights are not negative, and their sum is 1."
            )

    def loss(self, chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        """See `preference_loss`."""
        return preference_loss(chosen, rejected, self.beta, "dpo", self.label_smoothing)

    def reference(self, log_probs: jax.Array) -> Pair:
        """The virtual reference's log-probabilities of both answers, from those of all references, [K, B, E].

        Raises:
          UserError: if weights were given for another number of references, or are to be swapped among other than two.
        """
        count, fixed = len(log_probs), self.reference_weights
        if fixed and len(fixed) != count:
            raise UserError(
                f"config.objective.reference_weights has {len(fixed)} numbers, but there "
                f"{'is 1 reference' if count == 1 else f'are {count} references'} (config.reference.models)."
            )
        if self.swap_weights and count != 2:
            raise UserError(
                f"config.objective.swap_weights is of two references, but config.reference.models has {count}."
            )
        chosen, rejected = by_pair(log_probs)
        weights = jnp.asarray(fixed) if fixed else confidence_weights(chosen, rejected)
        weights = weights[::-1] if self.swap_weights else weights
        clipped = clip_to_anchor(chosen, rejected, self.reference_clip, self.adaptive_clip)
        return virtual_reference(clipped[0], weights), virtual_reference(clipped[1], weights)
