"""How far a model moved from a reference, on given data.

With p the model, q the reference, y_{i,t} the supervised tokens of example i and w_{i,t} their weights, in nats:

    deviation           = mean over i of [ sum_t w (log p(y) - log q(y)) / sum_t w ]   (Xie et al., arXiv:2408.10642)
    log_ratio_per_token = sum_{i,t} w (log p(y) - log q(y)) / sum_{i,t} w
    kl_per_token        = sum_{i,t} w KL(q(. | context) || p(. | context)) / sum_{i,t} w

The deviation is a mean over examples of their own means, and not a divergence: it can be near zero or negative while
the model moves elsewhere. KL(q || p) sees the whole distribution, is never negative, and zero only where nothing moved;
it needs both models at once, so it is missing where the reference has only left its log-likelihoods (`Kept`).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.config import TaskConfig
from jaxsft.data.batch import Batch
from jaxsft.errors import UserError
from jaxsft.evaluation.likelihood.perplexity import by_source, make_nll
from jaxsft.evaluation.rows import batches as rows
from jaxsft.evaluation.rows import read_examples
from jaxsft.evaluation.scoring import Sums, example_sums, hidden_states, replicate
from jaxsft.evaluation.task import Result, Subject, Task
from jaxsft.objectives.cross_entropy import token_kl, token_log_probs
from jaxsft.objectives.examples import sum_by_example

Model = tuple[Any, Any]  # parameters, and the adapter tree of `Decoder.forward` or None
Deviation = Callable[[Model, Model, Batch], Sums]


def make_deviation(decoder: Any, reference_decoder: Any, chunk_size: int = 1024) -> Deviation:
    """A compiled function that compares two models on a batch, example by example.

    Args:
      decoder: a `jaxsft.models.decoder.Decoder`.
      reference_decoder: likewise, with the same vocabulary; where it is the base under an adapter, pass `decoder` and
        the same parameters: the adapter switched off costs no second copy.
      chunk_size: tokens per device whose logits exist at once.

    Returns:
      `fn((params, adapters), (reference_params, reference_adapters), batch)` -> arrays [B, E], the same on every
      device: `log_ratio_sum` and `kl_sum` float32, weighted sums over tokens; `weight_sum` float32; `tokens` int32,
      targets whose weight is not 0; `example_index` int32, -1 in empty slots.
    """

    return functools.partial(_deviation, decoder, reference_decoder, chunk_size)


@functools.partial(jax.jit, static_argnames=("decoder", "reference_decoder", "chunk_size"))
def _deviation(
    decoder: Any, reference_decoder: Any, chunk_size: int, model: Model, reference: Model, batch: Batch
) -> Sums:
    heads = [(d.head, d.head_params(*m), hidden_states(d, *m, batch)) for d, m in
             ((decoder, model), (reference_decoder, reference))]  # fmt: skip
    options = {"mask": batch.weights != 0, "chunk_size": chunk_size}
    log_p, log_q = (token_log_probs(*head, batch.targets, **options)["log_prob"] for head in heads)
    per_token = {
        "log_ratio_sum": batch.weights * (log_p - log_q),
        "kl_sum": batch.weights * token_kl(*heads[1], *heads[0], **options),
        "weight_sum": batch.weights,
        "tokens": (batch.weights != 0).astype(jnp.int32),
    }
    sums = {name: sum_by_example(values, batch) for name, values in per_token.items()}
    return replicate(sums | {"example_index": batch.extras["example_index"]})


def summarize(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """The three figures of the module's docstring, `tokens` and `examples`; nan where nothing is supervised.

    Args:
      sums: what `jaxsft.evaluation.scoring.example_sums` collected with `make_deviation`.
    """
    scored = sums["weight_sum"] != 0 if sums else np.zeros(0, bool)
    examples = int(scored.sum())
    if not examples:
        return {name: math.nan for name in ("deviation", "log_ratio_per_token", "kl_per_token")} | {
            "tokens": 0,
            "examples": 0,
        }
    log_ratio, kl, weight = (sums[name][scored] for name in ("log_ratio_sum", "kl_sum", "weight_sum"))
    return {
        "deviation": math.fsum(log_ratio / weight) / examples,
        "log_ratio_per_token": math.fsum(log_ratio) / math.fsum(weight),
        "kl_per_token": math.fsum(kl) / math.fsum(weight),
        "tokens": int(sums["tokens"].sum()),
        "examples": examples,
    }


class Kept:
    """How far a model moved from one that is gone, whose log-likelihood of each example was kept.

    Attributes:
      task: `deviation`, `log_ratio_per_token`, `tokens`, `examples`, and `by_source` where there are several.
      fingerprint: of the examples.
    """

    def __init__(self, config: TaskConfig, subject: Subject):
        """Reads and tokenises the data that `config` names."""
        self._config, self._mesh = config, subject.mesh
        self._dataset = read_examples(config.data, subject.tokenizer, subject.decoder.arch)
        self._nll, self._kept = make_nll(subject.decoder), np.zeros(len(self._dataset))
        self.fingerprint = self._dataset.examples_fingerprint
        name, report = config.name or config.task, str(self._dataset.report)
        self.task = Task(name, report, self._dataset.fingerprint, self._measure)

    def score(self, params: Any, adapters: Any) -> np.ndarray:
        """float64 [examples], a model's weighted negative log-likelihood of each."""
        return self._sums(params, adapters)["nll_sum"]

    def keep(self, nll: np.ndarray) -> None:
        """Takes what `score` said of the reference."""
        self._kept = np.asarray(nll, np.float64)

    def _sums(self, params: Any, adapters: Any) -> dict[str, np.ndarray]:
        score = functools.partial(self._nll, params, adapters)
        batches = rows(self._dataset, self._config.data, self._config.batch_size, self._mesh, self.task.name)
        return example_sums(score, batches, self._mesh)

    def _measure(self, params: Any, adapters: Any) -> Result:
        sums = self._sums(params, adapters)
        sums |= {"log_ratio_sum": self._kept - sums["nll_sum"], "kl_sum": np.zeros(len(self._kept))}

        def figures(part: dict[str, np.ndarray]) -> dict[str, float]:
            return {name: value for name, value in summarize(part).items() if name != "kl_per_token"}

        return Result(figures(sums) | by_source(sums, self._dataset, figures), [])


def prepare(config: TaskConfig, subject: Subject, reference: Any | None) -> Task:
    """How far a model moved on the data that `config` names.

    Args:
      config: the task.
      subject: the model that is to be measured.
      reference: a `jaxsft.training.restore.OpenModel` on the same mesh; None is the base under the model's adapter.

    Returns:
      A task whose figures are what `summarize` says, and `by_source` where there are several.

    Raises:
      UserError: if there is neither reference nor adapter, or the tokenizers differ.
    """
    if reference is None and not subject.adapted:
        raise UserError("a model folder does not tell what it was made from; set config.reference to that model.")
    if reference is not None and subject.tokenizer.fingerprint != reference.tokenizer.fingerprint:
        raise UserError("model and config.reference have different tokenizers, so their tokens cannot be compared.")
    dataset = read_examples(config.data, subject.tokenizer, subject.decoder.arch)
    fn = make_deviation(subject.decoder, subject.decoder if reference is None else reference.decoder)
    name = config.name or config.task

    def measure(params: Any, adapters: Any) -> Result:
        compared = (params, None) if reference is None else (reference.params, reference.adapters)
        score = functools.partial(fn, (params, adapters), compared)
        batches = rows(dataset, config.data, config.batch_size, subject.mesh, name)
        sums = example_sums(score, batches, subject.mesh)
        kept = {name: sums[name] for name in ("log_ratio_sum", "kl_sum", "weight_sum")}
        return Result(summarize(sums) | by_source(sums, dataset, summarize), [], examples=kept)

    return Task(name, str(dataset.report), dataset.fingerprint, measure)
