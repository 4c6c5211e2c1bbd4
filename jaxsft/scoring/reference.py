"""The pass that asks a reference model for the log-probability of every example.

A loss that compares the model with a frozen one needs one number an example of it. Computed before training, it costs a
forward pass over the data, no memory, and nothing at all in the run that finds it done.
"""

import functools
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from jaxsft.data.batch import Batch
from jaxsft.data.dataset import Dataset
from jaxsft.data.loader import Loader
from jaxsft.evaluation.scoring import log_probs, replicate
from jaxsft.objectives.examples import sum_by_example
from jaxsft.scoring.run import score_examples


def score_log_probs(
    decoder: Any,
    model: tuple[Any, Any],
    dataset: Dataset,
    loader: Loader,
    mesh: Mesh,
    path: epath.PathLike,
    key: dict[str, Any],
    chunk_size: int = 1024,
    rows: int = 0,
) -> Any:
    """float32 [examples], the sum over each example's targets of their log-probabilities, in nats.

    Args:
      decoder: a `jaxsft.models.decoder.Decoder`.
      model: its parameters, and the adapter tree of `Decoder.forward` or None.
      dataset: the examples.
      loader: of the data set.
      mesh: the mesh that the parameters live on.
      path: where the table is kept.
      key: what decides the numbers; see `jaxsft.scoring.table.write_scores`.
      chunk_size: tokens per device whose logits exist at once.
      rows: rows of a batch; 0 is the loader's batch.
    """
    fn = functools.partial(_example_log_probs, decoder, chunk_size, *model)
    key = key | {"score": "log_prob", "dtype": str(decoder.dtype)}
    return score_examples(fn, dataset, loader, mesh, path, key, rows or loader.batch_size)["log_prob"]


@functools.partial(jax.jit, static_argnames=("decoder", "chunk_size"))
def _example_log_probs(decoder: Any, chunk_size: int, params: Any, adapters: Any, batch: Batch) -> dict[str, jax.Array]:
    tokens = log_probs(decoder, params, adapters, batch, chunk_size)
    sums = {"log_prob": sum_by_example(tokens["log_prob"], batch)}
    return replicate(sums | {"example_index": batch.extras["example_index"]})
