"""Examples as vectors: the mean of the model's final hidden states over their tokens."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxsft.data.batch import Batch
from jaxsft.data.dataset import Dataset
from jaxsft.data.loader import Loader
from jaxsft.evaluation.scoring import hidden_states, replicate
from jaxsft.scoring.run import score_examples

TEXTS = ("response", "instruction", "both")  # of which tokens: the supervised ones, the others, all


def embed_examples(
    decoder: Any,
    model: tuple[Any, Any],
    dataset: Dataset,
    loader: Loader,
    mesh: Mesh,
    path: epath.PathLike,
    key: dict[str, Any],
    text: str,
) -> np.ndarray:
    """float32 [examples, D], zero for an example that has no such token.

    Args:
      decoder: a `jaxsft.models.decoder.Decoder`.
      model: its parameters, and the adapter tree of `Decoder.forward` or None.
      dataset: the examples.
      loader: of the data set.
      mesh: the mesh that the parameters live on.
      path: where the table is kept.
      key: what decides the vectors besides `text`; see `jaxsft.scoring.table.write_scores`.
      text: of `TEXTS`.
    """
    fn = functools.partial(mean_hidden_states, decoder, text, *model)
    key = key | {"score": "embedding", "text": text, "dtype": str(decoder.dtype)}
    return np.stack(score_examples(fn, dataset, loader, mesh, path, key, loader.batch_size)["embedding"])


@functools.partial(jax.jit, static_argnames=("decoder", "text"))
def mean_hidden_states(decoder: Any, text: str, params: Any, adapters: Any, batch: Batch) -> dict[str, jax.Array]:
    """`embedding` float32 [B, E, D], and `example_index` int32 [B, E]."""
    hidden = hidden_states(decoder, params, adapters, batch).astype(jnp.float32)
    # weights are of targets: a token is supervised where the one before it predicts it, in the same example
    supervised = jnp.pad(batch.weights[:, :-1] != 0, ((0, 0), (1, 0)))
    wanted = {"response": supervised, "instruction": ~supervised, "both": jnp.ones_like(supervised)}[text]
    wanted &= batch.segment_ids > 0

    def row(hidden: jax.Array, wanted: jax.Array, ids: jax.Array) -> jax.Array:
        slots = jnp.where(wanted, ids, 0)
        total = jax.ops.segment_sum(hidden * wanted[:, None], slots, num_segments=batch.num_slots + 1)[1:]
        count = jax.ops.segment_sum(wanted.astype(jnp.float32), slots, num_segments=batch.num_slots + 1)[1:]
        return total / jnp.maximum(count, 1)[:, None]

    means = jax.vmap(row)(hidden, wanted, batch.example_ids)
    return replicate({"embedding": means, "example_index": batch.extras["example_index"]})
