"""The models that a run trains: one, or sub-models side by side, each with data and records of its own.

A sub-model's folder, `submodels/K` of the run's, is that of the run that would have trained it alone, less checkpoints:
`config.json`, `metrics.jsonl`, `summary.json` and, at the end, its adapter in `adapter/`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxsft.config import TrainConfig
from jaxsft.data.batch import Batch
from jaxsft.data.dataset import Dataset, prepare
from jaxsft.data.loader import Loader
from jaxsft.data.selection import part_count
from jaxsft.data.tokenizer import Tokenizer
from jaxsft.errors import UserError
from jaxsft.training import submodels
from jaxsft.training.workdir import SUBMODELS, Metrics, Workdir

Tree = Any


@dataclasses.dataclass
class Member:
    """One of the models of a run.

    Attributes:
      index: a sub-model's place on the leading axis of the state; None for the only model.
      config: what would train it alone.
      folder: of its records.
      dataset: its data.
      loader: of them.
      steps: how many it is trained for.
      counters: numbers of the host that go with its state.
      metrics: its own, from when the loop begins.
    """

    index: int | None
    config: TrainConfig
    folder: Workdir
    dataset: Dataset
    loader: Loader
    steps: int
    counters: dict[str, int] = dataclasses.field(default_factory=lambda: {"num_tokens": 0})
    metrics: Metrics | None = None

    @property
    def name(self) -> str:
        """For messages: "" for the only model."""
        return "" if self.index is None else f"sub-model {self.index}: "

    def of(self, tree: Tree) -> Tree:
        """Its part of a tree of the run."""
        return tree if self.index is None else submodels.take(tree, self.index)


def make_members(config: TrainConfig, folder: Workdir, tokenizer: Tokenizer, shares: tuple[Any, int]) -> list[Member]:
    """The models that a config asks for, with their data.

    Args:
      config: the run's.
      folder: the run's.
      tokenizer: the model's.
      shares: which rows of a batch this process assembles, see `jaxsft.sharding.process_share`. Batches of sub-models
        are assembled whole by every process.

    Raises:
      UserError: for data that cannot be trained on, and sub-models that are not as many as the parts of the data.
    """
    if not config.submodels:
        return [_member(None, config, folder, tokenizer, shares)]
    _check_parts(config)
    members = []
    for index in range(config.submodels):
        data, mesh = dataclasses.replace(config.data, part=index), dataclasses.replace(config.mesh, submodel=1)
        own = dataclasses.replace(config, data=data, mesh=mesh, submodels=0)
        place = Workdir(folder.path / SUBMODELS / str(index), writes=jax.process_index() == 0)
        members.append(_member(index, own, place, tokenizer, (0, 1)))
    return members


def _member(
    index: int | None, config: TrainConfig, folder: Workdir, tokenizer: Tokenizer, shares: tuple[Any, int]
) -> Member:
    dataset = prepare(config.data, tokenizer, config.seed)
    loader = Loader(dataset, config.data, config.batch_size, config.seed, *shares)
    steps = config.steps or loader.steps(config.epochs)
    if steps < 1:
        raise UserError(
            f"config.epochs is {config.epochs}, which is no step at {config.batch_size} rows a step; raise it."
        )
    return Member(index, config, folder, dataset, loader, steps)


def _check_parts(config: TrainConfig) -> None:
    """Refuses sub-models without a part for each."""
    if not config.data.parts or config.data.part >= 0:
        raise UserError(
            f"config.submodels is {config.submodels}, which trains one on each part of config.data.parts: name that "
            "table, and leave config.data.part at -1."
        )
    if (count := part_count(config.data.parts)) != config.submodels:
        raise UserError(f"config.submodels is {config.submodels}, but {config.data.parts} has {count} parts.")
    if config.checkpoint.keep_best:
        raise UserError("config.checkpoint.keep_best compares one model's losses; leave it at 0 with config.submodels.")
    if config.model.init == "random":
        raise UserError(
            "config.submodels leaves adapters of config.model.path, but config.model.init is 'random', so their base "
            "would be in no folder; train and export it first (scripts/export.py --format=hf)."
        )
    if config.adapter.start:
        raise UserError(
            "config.adapter.start cannot be the start of config.submodels yet; merge that adapter into the base first "
            "(scripts/export.py --format=hf)."
        )


def batches(members: list[Member], start: int) -> Iterator[Batch]:
    """The stacked batches of sub-models from step `start` on, counted from 0; that of a finished one is empty.

    Yields:
      Batches of NumPy arrays with a leading axis.
    """
    streams = [member.loader.iterate(min(start, member.steps), member.steps) for member in members]
    shapes = members[0].loader.shapes()
    empty = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    no_example = np.full(shapes.extras["example_index"].shape, -1, np.int32)
    empty = dataclasses.replace(empty, extras=empty.extras | {"example_index": no_example})
    for step in range(start, max(member.steps for member in members)):
        yield submodels.stack([next(s) if step < m.steps else empty for s, m in zip(streams, members)])
