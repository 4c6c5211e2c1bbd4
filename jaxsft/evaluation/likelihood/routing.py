"""Where routed experts (`jaxsft.adapters.loramoe`) are used: their mean weights, by kind of example and linear map.

With Q_{m,n} the weight of expert n summed over the T_m tokens of example m (every token, prompts too):

    weight of n on a kind of examples = sum_m Q_{m,n} / sum_m T_m      over its examples; 1 / N where routing is uniform
    cv                                = standard deviation over mean of these weights over the experts, all examples
                                        together; 0 is balance, sqrt(N - 1) one expert for everything
    own_type                          = share of the weight that is on experts of the example's own type, of examples
                                        with a type that experts have

The latter two are means over the linear maps.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.adapters.loramoe import IMPORTANCE, LoRAMoE
from jaxsft.config import TaskConfig, TypesConfig
from jaxsft.data import types as example_types
from jaxsft.data.batch import Batch
from jaxsft.data.dataset import Dataset
from jaxsft.errors import UserError
from jaxsft.evaluation.rows import batches, read_examples
from jaxsft.evaluation.scoring import Sums, example_sums, replicate
from jaxsft.evaluation.task import Result, Subject, Task
from jaxsft.models import layout
from jaxsft.models.projection import Context


def prepare(config: TaskConfig, subject: Subject) -> Task:
    """The routing of the data that `config` names, by the tag that its `types`, or those of the model's run, go by.

    Returns:
      A task whose figures are `cv`, `own_type` where examples have types, `tokens` and `examples`; `experts`, their
      types; `maps`, the routed linear maps by logical path; and `kinds`: tag -> its `type` (-1 for none), `examples`,
      `tokens` and `weights` [maps][experts].

    Raises:
      UserError: if the model has no routed experts.
    """
    if not isinstance(subject.method, LoRAMoE):
        raise UserError("the model has no routed experts, so there is no routing to measure; leave the task out.")
    types = config.data.types if example_types.given(config.data.types) or not subject.types else subject.types
    data = dataclasses.replace(config.data, types=TypesConfig())  # which need not have all the tags that types are of
    dataset = read_examples(data, subject.tokenizer, subject.decoder.arch)
    name, method = config.name or config.task, subject.method

    def measure(params: Any, adapters: Any) -> Result:
        score = functools.partial(_importances, subject.decoder, method.config.targets, params, adapters)
        rows = batches(dataset, data, config.batch_size, subject.mesh, name)
        sums = example_sums(score, rows, subject.mesh)
        maps = routed_maps(subject.decoder.arch, adapters, method.config.targets)
        return Result(summarize(sums["importance"], dataset, types, method.expert_types) | {"maps": maps}, [])

    return Task(name, str(dataset.report), dataset.fingerprint, measure)


def summarize(
    importance: np.ndarray, dataset: Dataset, types: TypesConfig, expert_types: Sequence[int]
) -> dict[str, Any]:
    """See `prepare`.

    Args:
      importance: float64 [examples, maps, N].
      dataset: the examples.
      types: of their tags.
      expert_types: of the experts.
    """
    names, ids = example_types.tags(dataset, types.by)
    tokens = importance[:, :1].sum(axis=(1, 2))  # a token's weights sum to 1
    mean = lambda chosen: importance[chosen].sum(axis=0) / tokens[chosen].sum()
    load = mean(np.full(len(ids), True))
    figures: dict[str, Any] = {"cv": float((load.std(axis=1) / load.mean(axis=1)).mean())}
    kinds, of_names = {}, example_types.of_names(types, names)
    own = np.zeros(2)  # weight on experts of the own type, and on all
    for k, name in enumerate(names):
        if (chosen := ids == k).any():
            weights, kind, count = mean(chosen), int(of_names[k]), tokens[chosen].sum()
            if kind in expert_types:
                mine = np.equal(expert_types, kind)
                own += count * np.array([weights[:, mine].sum(axis=1).mean(), 1.0])
            kinds[name or "(none)"] = {
                "type": kind,
                "examples": int(chosen.sum()),
                "tokens": round(count),
                "weights": weights.tolist(),
            }
    if own[1]:
        figures["own_type"] = float(own[0] / own[1])
    figures |= {"tokens": round(tokens.sum()), "examples": len(ids)}
    return figures | {"experts": list(expert_types), "kinds": kinds}


def routed_maps(arch: Any, tree: Any, targets: Sequence[str]) -> list[str]:
    """Logical paths of the targeted linear maps in a tree of adapter nodes or of reports, in the layers' order."""
    maps = dict.fromkeys(name.rpartition(".")[0] for name in layout.flatten(arch, tree))
    return [name for name in maps if layout.matches(targets, name)]


@functools.partial(jax.jit, static_argnames=("decoder", "targets"))
def _importances(decoder: Any, targets: tuple[str, ...], params: Any, adapters: Any, batch: Batch) -> Sums:
    """`importance` float32 [B, E, maps, N], maps as `routed_maps` has them, and `example_index` [B, E]."""
    ctx = Context(example_ids=batch.example_ids, valid=batch.segment_ids > 0, extras=batch.extras)
    rows = batch.tokens, batch.positions, batch.segment_ids
    aux = decoder.forward(params, *rows, adapters=adapters, ctx=ctx).aux
    reports = layout.flatten(decoder.arch, aux)
    found = [reports[f"{name}.{IMPORTANCE}"] for name in routed_maps(decoder.arch, aux, targets)]
    importance = jnp.stack([leaf if row is None else leaf[row] for leaf, row in found], axis=-2)
    return replicate({"importance": importance, "example_index": batch.extras["example_index"]})
