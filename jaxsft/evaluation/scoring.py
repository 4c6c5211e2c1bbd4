"""From batches on the devices to one row of numbers per example on the host.

The device sums over the tokens of each example, the host adds those sums in float64. So no figure depends on the batch
size, on how examples are packed into rows, or on the number of devices.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxsft.data.batch import Batch
from jaxsft.models.projection import Context
from jaxsft.objectives.cross_entropy import token_log_probs
from jaxsft.sharding import batch_sharding

Sums = dict[str, jax.Array]


def example_sums(score: Callable[[Batch], Sums], batches: Iterable[Batch], mesh: Mesh) -> dict[str, np.ndarray]:
    """What `score` says of every example.

    Args:
      score: a compiled function from a batch on the devices to arrays [B, E], among them `example_index`.
      batches: batches of NumPy arrays, each process's own rows.
      mesh: the mesh that the model lives on.

    Returns:
      name -> float64 [examples], ordered by example index, `example_index` among them; {} without batches.
    """
    parts: list[dict[str, np.ndarray]] = []
    with jax.set_mesh(mesh):
        pending = None
        for batch in batches:
            ready, pending = pending, score(to_devices(batch, mesh))
            parts += [] if ready is None else [_filled(ready)]  # read one batch late: the device never waits
        parts += [] if pending is None else [_filled(pending)]
    if not parts:
        return {}
    sums = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(sums["example_index"], kind="stable")
    return {name: values[order] for name, values in sums.items()}


def log_probs(decoder: Any, params: Any, adapters: Any, batch: Batch, chunk_size: int) -> dict[str, jax.Array]:
    """`log_prob` float32 [B, T] of the targets and `hit` bool [B, T]; 0 and False where the weight is 0."""
    return token_log_probs(
        decoder.head,
        decoder.head_params(params, adapters),
        hidden_states(decoder, params, adapters, batch),
        batch.targets,
        mask=batch.weights != 0,
        chunk_size=chunk_size,
    )


def hidden_states(decoder: Any, params: Any, adapters: Any, batch: Batch) -> jax.Array:
    """The final hidden states [B, T, D] of a batch, in evaluation mode."""
    ctx = Context(example_ids=batch.example_ids, valid=batch.segment_ids > 0, extras=batch.extras)
    return decoder.forward(params, batch.tokens, batch.positions, batch.segment_ids, adapters=adapters, ctx=ctx).hidden


def replicate(tree: Any) -> Any:
    """Puts small results on every device, so that every process reads all of them; the identity without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def to_devices(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows as part of the global batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def _filled(sums: Sums) -> dict[str, np.ndarray]:
    """The slots that hold an example."""
    host = jax.device_get(sums)
    filled = host["example_index"] >= 0
    return {name: values[filled].astype(np.float64) for name, values in host.items()}
