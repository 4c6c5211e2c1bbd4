"""Supervised fine-tuning: the weighted negative log-likelihood of the targets.

    token_mean     L = sum_t w_t l_t / sum_t w_t                        over the tokens t of the global batch
    example_mean   L = mean_e ( sum_{t in e} w_t l_t / sum_{t in e} w_t )   over its examples e of positive weight

with l_t the cross-entropy of `cross_entropy`. Both are global: they do not depend on how the batch is cut into
micro-batches, packed into rows or split over devices.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxsft.data.batch import Batch
from jaxsft.objectives.cross_entropy import weighted_cross_entropy
from jaxsft.objectives.objective import Model
from jaxsft.objectives.terms import Term, ratio


@dataclasses.dataclass(frozen=True)
class SFT:
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
        """The term `cross_entropy`, and sums over supervised tokens, see `metrics`."""
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
        sums = {
            "nll_sum": -jnp.sum(batch.weights * tokens.log_prob),
            "weight_sum": jnp.sum(jnp.asarray(batch.weights)),
            "hits": jnp.sum(tokens.hit).astype(jnp.float32),
            "supervised_tokens": jnp.sum(batch.weights != 0).astype(jnp.float32),
        }
        return {"cross_entropy": Term(1.0, loss, denominators["cross_entropy"])}, sums

    def penalties(self, parts: Any) -> dict[str, Term]:
        """None."""
        del parts
        return {}

    def metrics(self, sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Means over the supervised tokens, whatever the reduction.

        `nll` (nats, weighted, without smoothing and z-loss), `mean_token_accuracy` (share of targets that are the
        likeliest token) and `supervised_tokens` (their number).
        """
        return {
            "nll": ratio(sums["nll_sum"], sums["weight_sum"]),
            "mean_token_accuracy": ratio(sums["hits"], sums["supervised_tokens"]),
            "supervised_tokens": sums["supervised_tokens"],
        }


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
    """The summed weight of each example, [B, E + 1]; slot 0 is padding."""
    add = lambda weights, ids: jnp.zeros(batch.num_slots + 1, weights.dtype).at[ids].add(weights)
    return jax.vmap(add)(jnp.asarray(batch.weights), jnp.asarray(batch.example_ids))


def per_example_weights(batch: Batch) -> jax.Array:
    """Weights [B, T] that sum to one over each example; an example never leaves its row, so no other row matters."""
    of_example = jnp.take_along_axis(weight_of_examples(batch), jnp.asarray(batch.example_ids), axis=1)
    return jnp.where(of_example > 0, batch.weights / jnp.where(of_example > 0, of_example, 1), 0)
