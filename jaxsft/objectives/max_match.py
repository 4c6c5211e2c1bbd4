"""Worst-case consistency over paraphrases, after MaxMatch (arXiv:2209.12611).

With the record x_i, its views v_ik (other ways of asking the same) and p_n the distribution from which the n-th target
of the answer is predicted:

    D_ik = mean_n KL(sg[p_n(. | x_i)] || p_n(. | v_ik))
    L    = NLL(y | x) + lambda mean_i max_k D_ik           n over the targets that both have, i over records with views

The paper is on images, with pseudo-labels of unlabelled ones; this use of its maximum is untested for language models
there. In the place of the cross-entropy to p_n stands the divergence, which is less by the entropy of p_n: the gradient
is the same, and so is the worst view unless a view's answer was cut; what is reported is 0 where all views agree.

The NLL is that of the records alone. The gradient of the divergence flows through the worst view only, the first of
equal ones, and never through the prediction for the record. Its targets count alike, whatever their loss weights. All
comes from one forward pass over records and views.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsft.data.batch import Batch
from jaxsft.objectives.cross_entropy import token_kl
from jaxsft.objectives.examples import spread_over_tokens, sum_by_example, target_counts
from jaxsft.objectives.objective import Model
from jaxsft.objectives.sft import SFT
from jaxsft.objectives.terms import Term, ratio


@dataclasses.dataclass(frozen=True)
class MaxMatch(SFT):
    """The objective; see `jaxsft.config.ObjectiveConfig` for its fields."""

    consistency: float = 1.0
    views: str = "max"

    grouping = "views"

    def denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """Those of fine-tuning on the records alone, and the number of records with views."""
        records = jnp.any(line_up(batch).of_record, axis=-1)
        return super().denominators(without_views(batch)) | {"consistency": jnp.sum(records).astype(jnp.float32)}

    def __call__(
        self, model: Model, batch: Batch, denominators: dict[str, jax.Array]
    ) -> tuple[dict[str, Term], dict[str, jax.Array]]:
        """The terms `cross_entropy` and `consistency`, and sums over the supervised tokens of the records."""
        output = model(batch)
        terms, sums = super().__call__(lambda _: output, without_views(batch), denominators)
        if not self.consistency:
            return terms, sums
        views = line_up(batch)
        head = output.head, output.head_params
        record = jax.vmap(lambda row, at: row[at])(output.hidden, views.at)
        kl = token_kl(*head, record, *head, output.hidden, mask=views.shared, chunk_size=self.chunk_size)
        divergence = ratio(sum_by_example(kl, batch), sum_by_example(views.shared.astype(kl.dtype), batch))
        loss = jnp.sum(shares(jax.lax.stop_gradient(divergence), views.of_record, self.views) * divergence)
        sums |= {"consistency_sum": loss, "records_with_views": jnp.sum(jnp.any(views.of_record, axis=-1))}
        return terms | {"consistency": Term(self.consistency, loss, denominators["consistency"])}, sums

    def metrics(self, sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """See `token_metrics`; and `consistency`, unless lambda is 0: nats a target, a mean over records with views."""
        metrics = super().metrics(sums)
        if "consistency_sum" in sums:
            metrics["consistency"] = ratio(sums["consistency_sum"], sums["records_with_views"])
        return metrics


class Views(NamedTuple):
    """How the targets of views and records belong together.

    Attributes:
      at: int32 [B, T], for each target of a view the position in its row of the record's target of the same place.
      shared: bool [B, T], whether there is one.
      of_record: bool [B, E, E], whether the example in the second slot is a view of the record in the first, and has
        a shared target.
    """

    at: jax.Array
    shared: jax.Array
    of_record: jax.Array


def line_up(batch: Batch) -> Views:
    """Finds for the n-th supervised target of every view that of its record; all within the row."""
    mask, counts = jnp.asarray(batch.weights) != 0, target_counts(batch).astype(jnp.int32)
    member = jnp.asarray(batch.extras["member"])
    slots = jnp.arange(batch.num_slots)
    record = slots - jnp.maximum(member, 0)
    before = jnp.cumsum(counts, axis=1) - counts
    of_record = lambda x: spread_over_tokens(jnp.take_along_axis(x, record, axis=1), batch)
    place = jnp.cumsum(mask, axis=1) - 1 - spread_over_tokens(before, batch)
    supervised = jnp.argsort(~mask, axis=1, stable=True)  # examples follow each other in a row
    at = jnp.take_along_axis(supervised, (of_record(before) + place).clip(0, mask.shape[1] - 1), axis=1)
    shared = mask & (spread_over_tokens(member, batch) > 0) & (place < of_record(counts))
    has = sum_by_example(shared.astype(jnp.int32), batch) > 0
    return Views(at, shared, (slots[:, None] == record[:, None]) & has[:, None])


def shares(divergence: jax.Array, of_record: jax.Array, views: str) -> jax.Array:
    """[B, E], what each view counts: under "max" 1 for the worst of its record, under "mean" 1 / K.

    Args:
      divergence: [B, E], of each view.
      of_record: as in `Views`.
      views: "max" or "mean".
    """
    if views == "mean":
        return jnp.sum(ratio(of_record, jnp.sum(of_record, axis=-1, keepdims=True)), axis=1)
    worst = jnp.argmax(jnp.where(of_record, divergence[:, None], -jnp.inf), axis=-1)
    return jnp.sum(of_record & (jnp.arange(worst.shape[1]) == worst[..., None]), axis=1)


def without_views(batch: Batch) -> Batch:
    """The batch, in which the views have no loss weight."""
    is_record = spread_over_tokens(jnp.asarray(batch.extras["member"]), batch) == 0
    return dataclasses.replace(batch, weights=jnp.where(is_record, batch.weights, 0))
