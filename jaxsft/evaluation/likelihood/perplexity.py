"""Token-weighted negative log-likelihood (NLL) of conversations or text: sum over sum, over all examples."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxsft.config import TaskConfig
from jaxsft.data.batch import Batch
from jaxsft.evaluation.rows import batches as rows
from jaxsft.evaluation.rows import read_examples
from jaxsft.evaluation.scoring import Sums, example_sums, log_probs, replicate
from jaxsft.evaluation.task import Result, Subject, Task
from jaxsft.objectives.examples import sum_by_example

NLL = Callable[[Any, Any, Batch], Sums]


def make_nll(decoder: Any, chunk_size: int = 1024) -> NLL:
    """A compiled function that scores a batch, example by example.

    Args:
      decoder: a `jaxsft.models.decoder.Decoder`.
      chunk_size: tokens per device whose logits exist at once.

    Returns:
      `fn(params, adapters, batch)` -> arrays [B, E], one number per example slot (slot e - 1 is example id e), the same
      on every device: `nll_sum` float32, the sum of weight * -log p(target); `weight_sum` float32; `tokens` int32,
      targets whose weight is not 0; `hits` int32, those of them that the model ranks first; `example_index` int32, -1
      in empty slots.
    """

    return functools.partial(_nll, decoder, chunk_size)


@functools.partial(jax.jit, static_argnames=("decoder", "chunk_size"))
def _nll(decoder: Any, chunk_size: int, params: Any, adapters: Any, batch: Batch) -> Sums:
    scores = log_probs(decoder, params, adapters, batch, chunk_size)
    per_token = {
        "nll_sum": -batch.weights * scores["log_prob"],
        "weight_sum": batch.weights,
        "tokens": (batch.weights != 0).astype(jnp.int32),
        "hits": scores["hit"].astype(jnp.int32),
    }
    sums = {name: sum_by_example(values, batch) for name, values in per_token.items()}
    return replicate(sums | {"example_index": batch.extras["example_index"]})


def evaluate(fn: NLL, params: Any, adapters: Any, batches: Iterable[Batch], mesh: Mesh) -> dict[str, float]:
    """The NLL of all batches together.

    Args:
      fn: what `make_nll` returned.
      params: the model's parameters.
      adapters: the adapter tree of `Decoder.forward`, or None.
      batches: batches of NumPy arrays, each process's own rows.
      mesh: the mesh that the parameters live on.

    Returns:
      See `summarize`.
    """
    return summarize(example_sums(functools.partial(fn, params, adapters), batches, mesh))


def summarize(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """Figures of a set of examples.

    Args:
      sums: what `example_sums` collected with `make_nll`.

    Returns:
      `nll_per_token` = sum of weighted NLL / sum of weights, in nats; `perplexity` = exp of it; `mean_token_accuracy` =
      hits / tokens; `tokens` and `examples` that were scored; nan where nothing was.
    """
    tokens = int(sums["tokens"].sum()) if sums else 0
    if not tokens:
        return {name: math.nan for name in ("nll_per_token", "perplexity", "mean_token_accuracy")} | {
            "tokens": 0,
            "examples": 0,
        }
    nll = math.fsum(sums["nll_sum"]) / math.fsum(sums["weight_sum"])
    return {
        "nll_per_token": nll,
        "perplexity": float(np.exp(nll)),
        "mean_token_accuracy": float(sums["hits"].sum()) / tokens,
        "tokens": tokens,
        "examples": int(np.count_nonzero(sums["tokens"])),
    }


def prepare(config: TaskConfig, subject: Subject) -> Task:
    """The NLL of the data that `config` names; see `jaxsft.evaluation.rows.read_examples` for how text is read.

    Returns:
      A task whose figures are what `summarize` says, where `examples` counts records (a long text has several
      `windows`), what was cut and dropped, and `by_source` where there are several.
    """
    dataset = read_examples(config.data, subject.tokenizer, subject.decoder.arch)
    report, nll, name = dataset.report, make_nll(subject.decoder), config.name or config.task

    def measure(params: Any, adapters: Any) -> Result:
        score = functools.partial(nll, params, adapters)
        batches = rows(dataset, config.data, config.batch_size, subject.mesh, name)
        sums = example_sums(score, batches, subject.mesh)
        figures = summarize(sums) | {
            "examples": report.records - sum(report.dropped.values()),
            "windows": len(dataset),
            "cut": report.cut,
            "dropped": report.dropped,
        }
        kept = {name: sums[name] for name in ("nll_sum", "weight_sum")}
        return Result(figures | by_source(sums, dataset, summarize), [], examples=kept)

    return Task(name, str(report), dataset.fingerprint, measure)


def by_source(sums: dict[str, np.ndarray], dataset: Any, summarize: Callable[[dict], dict]) -> dict[str, Any]:
    """{"by_source": name -> figures} of the sources of a `jaxsft.data.dataset.Dataset`; {} if there is but one."""
    if len(dataset.sources) < 2:
        return {}
    of = dataset.source_ids[sums["example_index"].astype(int)]
    parts = {name: {key: values[of == i] for key, values in sums.items()} for i, name in enumerate(dataset.sources)}
    return {"by_source": {name: summarize(part) for name, part in parts.items()}}
