"""Supervised fine-tuning: the weighted negative log-likelihood of the targets.

    token_mean     L = sum_t w_t l_t / sum_t w_t                        over the tokens t of the global batch
    example_mean   L = mean_e ( sum_{t in e} w_t l_t / sum_{t in e} w_t )   over its examples e of positive weight

with l_t the cross-entropy of `cross_entropy`. Both are global: they do not depend on how the batch is cut into
micro-batches, packed into rows or split over devices.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxsft.data.batch import Batch
from jaxsft.objectives.cross_entropy import weighted_cross_entropy
from jaxsft.objectives.examples import spread_over_tokens, sum_by_example
from jaxsft.objectives.figures import token_metrics, token_sums
from jaxsft.objectives.objective import Base, Model
from jaxsft.objectives.terms import Term, ratio


@dataclasses.dataclass(frozen=True)
class SFT(Base):
    """The objective; see `jaxsft.config.ObjectiveConfig` for its fields."""

    reduction: str = "token_mean"
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    chunk_size: int = 1024

    def denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """The sum of weights, or the number of examples of positive weight."""
        return {"cross_entropy": denominator(batch, self.reduction)}

    def __call__(
        self, model: Model, batch: Batch, denominators: dict[str, jax.Array]
    ) -> tuple[dict[str, Term], dict[str, jax.Array]]:
        """The term `cross_entropy`, and sums over the supervised tokens."""
        output = model(batch)
        loss, tokens = weighted_cross_entropy(
            output.head,
            output.head_params,
            output.hidden,
            batch.targets,
            token_weights(batch, self.reduction),
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
            chunk_size=self.chunk_size,
        )
        terms = {"cross_entropy": Term(1.0, loss, denominators["cross_entropy"])}
        return terms, token_sums(batch, tokens.log_prob, tokens.hit)

    def metrics(self, sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """See `token_metrics`."""
        return token_metrics(sums)


def token_weights(batch: Batch, reduction: str) -> jax.Array:
    """What each target counts, float32 [B, T]: its weight, under "example_mean" over that of its example.

    The sum over tokens of these times a token's loss, divided by `denominator`, is the mean that `reduction` names.
    """
    return per_example_weights(batch) if reduction == "example_mean" else jnp.asarray(batch.weights)


def denominator(batch: Batch, reduction: str) -> jax.Array:
    """What a sum by `token_weights` is divided by: the number of examples of positive weight, or the sum of weights."""
    if reduction == "example_mean":
        return jnp.sum(weight_of_examples(batch) > 0).astype(jnp.float32)
    return jnp.sum(jnp.asarray(batch.weights))


def weight_of_examples(batch: Batch) -> jax.Array:
    """The summed weight of each example, [B, E]."""
    return sum_by_example(batch.weights, batch)


def per_example_weights(batch: Batch) -> jax.Array:
    """Weights [B, T] that sum to one over each example; an example never leaves its row, so no other row matters."""
    return ratio(jnp.asarray(batch.weights), spread_over_tokens(weight_of_examples(batch), batch))
