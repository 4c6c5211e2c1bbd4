"""What every objective reports of its tokens."""

import jax
import jax.numpy as jnp

from jaxsft.data.batch import DOMAIN, Batch
from jaxsft.objectives.examples import sum_by_example, target_counts
from jaxsft.objectives.reference import PREFIX
from jaxsft.objectives.terms import ratio

Sums = dict[str, jax.Array]


def token_sums(batch: Batch, log_prob: jax.Array, hit: jax.Array, reference: jax.Array | None = None) -> Sums:
    """Sums over the supervised tokens of a micro-batch.

    Args:
      batch: the rows.
      log_prob: [B, T], of the targets; 0 where the weight is 0.
      hit: bool [B, T], the target is the likeliest token.
      reference: [B, E], log-probabilities of the examples' targets under a reference, from which the deviation is
        summed too; None takes those that come with the batch, if any.
    """
    weights, log_prob = jnp.asarray(batch.weights), jax.lax.stop_gradient(log_prob)
    sums = {
        "nll_sum": -jnp.sum(weights * log_prob),
        "weight_sum": jnp.sum(weights),
        "hits": jnp.sum(hit).astype(jnp.float32),
        "supervised_tokens": jnp.sum(weights != 0).astype(jnp.float32),
    }
    sums |= domain_sums(batch, log_prob)
    reference = batch.extras.get(f"{PREFIX}0") if reference is None else reference
    if reference is not None:
        sums |= deviation_sums(batch, sum_by_example(log_prob, batch), reference)
    return sums


def domain_sums(batch: Batch, log_prob: jax.Array) -> Sums:
    """What `token_sums` sums for the loss, over the examples of each domain; nothing where the data has no domains."""
    domains = {name.removeprefix(DOMAIN): of for name, of in batch.extras.items() if name.startswith(DOMAIN)}
    if not domains:
        return {}
    weights = jnp.asarray(batch.weights)
    nll, weight = (sum_by_example(values, batch) for values in (-weights * log_prob, weights))
    total = lambda values, of: jnp.sum(jnp.where(jnp.asarray(of) == 1, values, 0))
    sums = {f"nll_sum/{name}": total(nll, of) for name, of in domains.items()}
    return sums | {f"weight_sum/{name}": total(weight, of) for name, of in domains.items()}


def deviation_sums(batch: Batch, log_prob: jax.Array, reference: jax.Array) -> Sums:
    """Sums of the deviation metric, from log-probabilities [B, E] of each example's targets under both models.

    The deviation is the mean over examples of their own mean log-ratio a token (Xie et al., arXiv:2408.10642). It is no
    divergence: it may be near 0 or negative while the model moves elsewhere.
    """
    counts = target_counts(batch)
    return {
        "deviation_sum": jnp.sum(ratio(log_prob - reference, counts)),
        "examples": jnp.sum(counts > 0).astype(jnp.float32),
    }


def token_metrics(sums: Sums) -> dict[str, jax.Array]:
    """Means over the supervised tokens, whatever the loss.

    `nll` (nats, weighted; `nll/NAME` of each domain of the data, 0 where the batch has none of it),
    `mean_token_accuracy` (share of targets that are the likeliest token), `supervised_tokens` (their number), and where
    there is a reference the `deviation` from it (nats a token, a mean over examples).
    """
    metrics = {
        "nll": ratio(sums["nll_sum"], sums["weight_sum"]),
        "mean_token_accuracy": ratio(sums["hits"], sums["supervised_tokens"]),
        "supervised_tokens": sums["supervised_tokens"],
    }
    for name in [name for name in sums if name.startswith("nll_sum/")]:
        domain = name.removeprefix("nll_sum/")
        metrics[f"nll/{domain}"] = ratio(sums[name], sums[f"weight_sum/{domain}"])
    if "deviation_sum" in sums:
        metrics["deviation"] = ratio(sums["deviation_sum"], sums["examples"])
    return metrics
