"""MinorSFT (Xie et al. 2024, arXiv:2408.10642): examples on which the model has gained already pull less.

With l_it the log-probability of target t of example i, m_i its number of targets, s_i the mean of its weights, and r_i
its summed log-ratio to a frozen reference:

    r_i = sum_t (l_it - ref_it)        w_i = 2 sigma(-beta r_i)
    L   = sum_i s_i w_i (-1/m_i sum_t l_it) / sum_i s_i                                       w_i without gradient

    dL/dl_it = -(s_i / sum s) (2/m_i) sigma(-beta r_i)                      the gradient that the paper publishes

w_i is 1 where model and reference agree, so training starts as plain SFT with a mean over examples does, and is that
for beta = 0. The closed form has the same gradient with nothing stopped, where an example's weights are all alike:

    L_C = sum_i s_i (-2 / (beta m_i)) (log sigma(beta r_i) + log 2) / sum_i s_i

`ratio = "mean"` puts r_i / m_i in the place of r_i, so that long examples do not saturate (not in the paper).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxsft.data.batch import Batch
from jaxsft.errors import UserError
from jaxsft.objectives.cross_entropy import cross_entropies
from jaxsft.objectives.examples import spread_over_tokens, sum_by_example, target_counts
from jaxsft.objectives.figures import token_metrics, token_sums
from jaxsft.objectives.objective import Base, Model
from jaxsft.objectives.reference import reference_log_probs
from jaxsft.objectives.terms import Term, ratio


@dataclasses.dataclass(frozen=True)
class MinorSFT(Base):
    """The objective; see `jaxsft.config.ObjectiveConfig` for its fields."""

    beta: float
    ratio: str = "sum"
    form: str = "weight"
    chunk_size: int = 1024
    needs_reference = True

    def __post_init__(self):
        """Raises `UserError` for a beta that divides by zero."""
        if self.form == "closed" and not self.beta:
            raise UserError("config.objective.beta is 0, for which MinorSFT has no closed form; take form='weight'.")

    def denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """The sum over examples of their mean weight: their number, if all weights are 1."""
        return {"minor_sft": jnp.sum(ratio(sum_by_example(batch.weights, batch), target_counts(batch)))}

    def __call__(
        self, model: Model, batch: Batch, denominators: dict[str, jax.Array]
    ) -> tuple[dict[str, Term], dict[str, jax.Array]]:
        """The term `minor_sft`."""
        output = model(batch)
        head = output.head, output.head_params, output.hidden
        losses, tokens = cross_entropies(*head, batch.targets, batch.weights != 0, chunk_size=self.chunk_size)
        reference = reference_log_probs(model, batch, chunk_size=self.chunk_size)
        counts = target_counts(batch)
        log_ratio = -sum_by_example(losses, batch) - reference
        log_ratio = jnp.where(counts > 0, log_ratio, 0)
        if self.ratio == "mean":
            log_ratio = ratio(log_ratio, counts)
        factors = sample_weights(jax.lax.stop_gradient(log_ratio), self.beta)
        if self.form == "closed":
            shares = ratio(sum_by_example(batch.weights, batch), counts)
            loss = jnp.sum(shares * closed_form(log_ratio, counts if self.ratio == "sum" else 1.0, self.beta))
        else:
            # The weights of an example's tokens sum to its mean weight s_i; each then counts w_i times.
            shares = ratio(jnp.asarray(batch.weights), spread_over_tokens(counts, batch))
            loss = jnp.sum(shares * spread_over_tokens(factors, batch) * losses)
        sums = token_sums(batch, tokens.log_prob, tokens.hit, reference)
        sums["factor_sum"] = jnp.sum(jnp.where(counts > 0, factors, 0))
        return {"minor_sft": Term(1.0, loss, denominators["minor_sft"])}, sums

    def metrics(self, sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """See `token_metrics`; and `sample_weight`, the mean over examples of w."""
        return token_metrics(sums) | {"sample_weight": ratio(sums["factor_sum"], sums["examples"])}


def sample_weights(log_ratio: jax.Array, beta: float) -> jax.Array:
    """w = 2 sigma(-beta r), between 0 and 2 for any r, of the same shape as r."""
    return 2 * jax.nn.sigmoid(-beta * log_ratio)


def closed_form(log_ratio: jax.Array, counts: jax.Array | float, beta: float) -> jax.Array:
    """-(2 / (beta m)) (log sigma(beta r) + log 2), elementwise, 0 where m is 0; the log 2 keeps small beta finite."""
    return ratio(-2 / beta * (jax.nn.log_sigmoid(beta * log_ratio) + math.log(2)), jnp.asarray(counts))
