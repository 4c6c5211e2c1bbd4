"""Token-weighted negative log-likelihood (NLL) of data under a model.

The device sums over each example, the host adds those sums in float64: the figures depend neither on the batch size,
nor on how examples are packed into rows, nor on the number of devices.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxsft.adapters.projection import Context
from jaxsft.data.batch import Batch
from jaxsft.sharding import batch_sharding

Sums = dict[str, jax.Array]
NLL = Callable[[Any, Any, Batch], Sums]


def make_nll(decoder: Any, chunk_size: int = 1024) -> NLL:
    """A compiled function that scores a batch, example by example.

    Args:
      decoder: a `jaxsft.models.decoder.Decoder`.
      chunk_size: tokens whose logits exist at once.

    Returns:
      `fn(params, adapters, batch)` -> arrays [B, E], one number per example slot (slot e - 1 is example id e), the same
      on every device: `nll_sum` float32, the sum of weight * -log p(target); `weight_sum` float32; `tokens` int32,
      targets of positive weight; `hits` int32, those of them that the model ranks first; `example_index` int32, -1 in
      empty slots.
    """

    @jax.jit
    def nll(params: Any, adapters: Any, batch: Batch) -> Sums:
        log_probs, best = token_log_probs(decoder, params, adapters, batch, chunk_size)
        counted = batch.weights > 0
        sums = {
            "nll_sum": sum_by_example(-batch.weights * log_probs, batch),
            "weight_sum": sum_by_example(batch.weights, batch),
            "tokens": sum_by_example(counted.astype(jnp.int32), batch),
            "hits": sum_by_example((counted & best).astype(jnp.int32), batch),
            "example_index": batch.extras["example_index"],
        }
        return replicate(sums)

    return nll


def evaluate(fn: NLL, params: Any, adapters: Any, batches: Iterable[Batch], mesh: Mesh) -> dict[str, float]:
    """The NLL of all batches together: sum over sum.

    Args:
      fn: what `make_nll` returned.
      params: the model's parameters.
      adapters: the adapter tree of `Decoder.forward`, or None.
      batches: batches of NumPy arrays, each process's own rows.
      mesh: the mesh that the parameters live on.

    Returns:
      `nll_per_token` = sum of weighted NLL / sum of weights, in nats; `perplexity` = exp of it; `mean_token_accuracy`;
      `tokens` and `examples` that were scored; nan where there is none.
    """
    return summarize(example_sums(functools.partial(fn, params, adapters), batches, mesh))


def example_sums(score: Callable[[Batch], Sums], batches: Iterable[Batch], mesh: Mesh) -> dict[str, np.ndarray]:
    """What `score` says of every example, on the host in float64.

    Args:
      score: a compiled function from a batch on the devices to arrays [B, E], among them `example_index`.
      batches: see `evaluate`.
      mesh: see `evaluate`.

    Returns:
      name -> float64 [examples], ordered by example index, `example_index` among them.
    """
    parts: list[dict[str, np.ndarray]] = []
    with jax.set_mesh(mesh):
        pending = None
        for batch in batches:
            ready, pending = pending, score(to_devices(batch, mesh))
            parts += [_filled(ready)] if ready is not None else []  # read one batch late: the device never waits
        parts += [_filled(pending)] if pending is not None else []
    if not parts:
        return {"example_index": np.zeros(0)}
    sums = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(sums["example_index"], kind="stable")
    return {name: values[order] for name, values in sums.items()}


def summarize(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """Sum over sum of what `example_sums` collected with `make_nll`; see `evaluate`."""
    zero = np.zeros(0)
    nll, weight, tokens, hits = (sums.get(k, zero) for k in ("nll_sum", "weight_sum", "tokens", "hits"))
    nll_per_token = math.fsum(nll) / math.fsum(weight) if weight.any() else math.nan
    return {
        "nll_per_token": nll_per_token,
        "perplexity": float(np.exp(nll_per_token)),
        "mean_token_accuracy": float(hits.sum() / tokens.sum()) if tokens.any() else math.nan,
        "tokens": int(tokens.sum()),
        "examples": int(np.count_nonzero(tokens)),
    }


def token_log_probs(
    decoder: Any, params: Any, adapters: Any, batch: Batch, chunk_size: int
) -> tuple[jax.Array, jax.Array]:
    """log p(target) float32 [B, T], and bool [B, T], whether the target is the likeliest token."""
    hidden = forward(decoder, params, adapters, batch)
    head_params = decoder.head_params(params, adapters)
    rows, length, width = hidden.shape
    chunks = max(1, -(-rows * length // chunk_size))

    def score(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden, targets = chunk
        logits = decoder.head(head_params, hidden)
        target = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return target - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == targets

    pad = chunks * chunk_size - rows * length
    flat = jnp.pad(hidden.reshape(-1, width), ((0, pad), (0, 0))).reshape(chunks, chunk_size, width)
    targets = jnp.pad(batch.targets.reshape(-1), (0, pad)).reshape(chunks, chunk_size)
    log_probs, best = jax.lax.map(score, (flat, targets))
    whole = lambda x: x.reshape(-1)[: rows * length].reshape(rows, length)  # noqa: E731
    return whole(log_probs), whole(best)


def forward(decoder: Any, params: Any, adapters: Any, batch: Batch) -> jax.Array:
    """The final hidden states [B, T, D] of a batch, in evaluation mode."""
    ctx = Context(example_ids=batch.example_ids, valid=batch.segment_ids > 0, extras=batch.extras)
    return decoder.forward(params, batch.tokens, batch.positions, batch.segment_ids, adapters=adapters, ctx=ctx).hidden


def sum_by_example(values: jax.Array, batch: Batch) -> jax.Array:
    """Sums [B, T] over the tokens of each example: [B, E]."""

    def row(values: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, ids, num_segments=batch.num_slots + 1)[1:]

    return jax.vmap(row)(values, batch.example_ids)


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
