"""The reference model's log-probabilities, from wherever they are.

Of a reference that does not change one number an example is all that most losses need. It is computed once, before
training (`jaxsft.scoring.reference`), and comes with the batch; or, under an adapter, at every step from the base with
the adapter switched off, which serves data that is made while training.
"""

import jax

from jaxsft.data.batch import Batch
from jaxsft.objectives.cross_entropy import token_log_probs
from jaxsft.objectives.examples import sum_by_example
from jaxsft.objectives.objective import Model

PREFIX = "reference_"  # extras `reference_0`, `reference_1`, ... hold log-probabilities, one number an example


def reference_log_probs(model: Model, batch: Batch, k: int = 0, chunk_size: int = 1024) -> jax.Array:
    """float32 [B, E], the k-th reference's log-probability of each example's targets, in nats; without gradient.

    It is the sum over the targets whose loss weight is not 0.
    """
    if f"{PREFIX}{k}" in batch.extras:
        return batch.extras[f"{PREFIX}{k}"]
    output = model(batch, adapter=False)
    mask = batch.weights != 0
    tokens = token_log_probs(
        output.head, output.head_params, output.hidden, batch.targets, mask=mask, chunk_size=chunk_size
    )
    return jax.lax.stop_gradient(sum_by_example(tokens["log_prob"], batch))
