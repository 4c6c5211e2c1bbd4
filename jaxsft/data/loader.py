"""Batches by step: the state of the data is the step, and nothing else.

Epochs follow each other as one stream of rows, of which step s takes the rows s * batch_size onwards; the last batch of
an epoch is filled from the next. Each process assembles its share of the same global batch.
"""

import functools
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from jaxsft.config import DataConfig
from jaxsft.data.batch import Batch
from jaxsft.data.dataset import Dataset
from jaxsft.data.groups import Groups
from jaxsft.data.packing import Plan, plan
from jaxsft.errors import UserError

THREADS, PREFETCH = 2, 4
Group = list[tuple[int, slice]]  # see `jaxsft.data.groups.Groups.group`


class Loader:
    """Batches of a data set.

    Attributes:
      batch_size: rows of a global batch.
      row_length: T.
      num_slots: E.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        batch_size: int,
        seed: int = 0,
        shares: int | Sequence[int] = 0,
        share_count: int = 1,
    ):
        """Lays out nothing yet.

        Args:
          dataset: the examples.
          config: for `max_length`, `packing` and `max_examples_per_row`.
          batch_size: rows of a global batch.
          seed: of the order.
          shares: which of the `share_count` equal runs of a global batch's rows are assembled here, in rising order;
            see `jaxsft.sharding.process_share`.
          share_count: how many runs there are; by default the one of all rows.

        Raises:
          UserError: if the shares are not equal.
        """
        self._shares = (shares,) if isinstance(shares, int) else tuple(shares)
        self._share_count = share_count
        self._dataset, self._seed, self._packing = dataset, seed, config.packing
        self.batch_size, self.row_length = batch_size, config.max_length
        self._unit, self._grouped = config.attention_unit, config.grouping != "example"
        self._epoch = functools.lru_cache(maxsize=3)(self._lay_out_epoch)
        self.num_slots = config.max_examples_per_row
        if not config.packing:
            self.num_slots = int(self._epoch(0).groups.sizes().max()) if self._grouped else 1
        self._rows_before, self._lock = [0], threading.Lock()
        self._share(batch_size)

    def rows(self, epoch: int = 0) -> int:
        """How many rows an epoch has."""
        return self._epoch(epoch).plan.num_rows

    def steps(self, epochs: float) -> int:
        """Optimizer steps that see every row of that many epochs."""
        whole = int(epochs)
        rows = self._start_of(whole) + math.ceil((epochs - whole) * self.rows(whole) if epochs > whole else 0)
        return math.ceil(rows / self.batch_size)

    def fill_rate(self, epoch: int = 0) -> float:
        """Share of an epoch's slots that hold tokens."""
        groups, plan = self._epoch(epoch)
        return float(groups.sums(self._dataset.lengths).sum() / (plan.num_rows * self.row_length))

    def rows_without_slot(self, epoch: int = 0) -> int:
        """How many rows of an epoch hold as many examples as they may."""
        groups, plan = self._epoch(epoch)
        return int((np.add.reduceat(groups.sizes()[plan.groups], plan.starts[:-1]) == self.num_slots).sum())

    def batch(self, step: int) -> Batch:
        """This process's rows of the batch of optimizer step `step`, counted from 0; NumPy arrays."""
        first = step * self.batch_size
        return self._assemble([self._row(first + r) for r in self._share(self.batch_size)])

    def shapes(self) -> Batch:
        """The global batch as `jax.ShapeDtypeStruct`s."""
        one = self._assemble([[]])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.batch_size, *x.shape[1:]), x.dtype), one)

    def counts(self, step: int) -> dict[str, int]:
        """Tokens of the global batch of a step: `slots` it has, `real` ones in them, `supervised` ones among these."""
        rows = [self._row(step * self.batch_size + r) for r in range(self.batch_size)]
        counts = [self._count(*member) for row in rows for group in row for member in group]
        real, supervised = (sum(column) for column in zip(*counts))
        return {"slots": self.batch_size * self.row_length, "real": real, "supervised": supervised}

    @property
    def mean_unit_length(self) -> float:
        """Mean over tokens of the length of the attention unit that they sit in, in the first epoch."""
        groups, plan = self._epoch(0)
        lengths = groups.tokens(self._dataset.lengths)
        if self._unit != "example":
            lengths = groups.sums(self._dataset.lengths)
        if self._unit == "row":
            lengths = np.add.reduceat(lengths[plan.groups], plan.starts[:-1])
        return float((lengths.astype(np.float64) ** 2).sum() / lengths.sum())

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps `start` up to `stop`, assembled ahead by threads; errors are raised here."""
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=PREFETCH)
        return iter(grain.MapDataset.range(start, stop).map(self.batch).to_iter_dataset(options))

    def evaluation_batches(
        self, batch_size: int | None = None, first: int = 0, examples: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """Every example once, by itself, in the data's order as far as packing allows, from batch `first` on.

        The last batch ends in empty rows. Neither a part nor a share of the data that training is given counts here:
        `examples` names those that are wanted.
        """
        batch_size = batch_size or self.batch_size
        groups = Groups.single(np.arange(len(self._dataset)) if examples is None else examples)
        table = self._lay_out(groups, 0, shuffle=False)
        for begin in range(first * batch_size, table.num_rows, batch_size):
            rows = [table.row(begin + r) if begin + r < table.num_rows else [] for r in self._share(batch_size)]
            yield self._assemble([[groups.group(g) for g in row] for row in rows])

    def _share(self, batch_size: int) -> list[int]:
        if batch_size % self._share_count:
            raise UserError(
                f"a batch of {batch_size} rows cannot be split over {self._share_count} processes' devices; "
                "choose a multiple."
            )
        size = batch_size // self._share_count
        return [share * size + row for share in self._shares for row in range(size)]

    def _lay_out_epoch(self, epoch: int) -> "_Epoch":
        groups = self._dataset.epoch(epoch)
        return _Epoch(groups, self._lay_out(groups, epoch, shuffle=True))

    def _lay_out(self, groups: Groups, epoch: int, shuffle: bool) -> Plan:
        if self._packing and (largest := int(groups.sizes().max(initial=0))) > self.num_slots:
            raise UserError(
                f"config.data.max_examples_per_row is {self.num_slots}, but examples stand in groups of {largest} "
                f"(config.data.grouping); raise it to {largest} or more."
            )
        return plan(
            groups.sums(self._dataset.lengths),
            self.row_length,
            seed=self._seed,
            epoch=epoch,
            packing=self._packing,
            max_examples=self.num_slots,
            sizes=groups.sizes(),
            shuffle=shuffle,
        )

    def _start_of(self, epoch: int) -> int:
        """Rows of all epochs before `epoch`."""
        if not self._dataset.epochs_vary:
            return epoch * self.rows(0)
        with self._lock:
            while len(self._rows_before) <= epoch:
                self._rows_before.append(self._rows_before[-1] + self.rows(len(self._rows_before) - 1))
            return self._rows_before[epoch]

    def _count(self, example: int, window: slice) -> tuple[int, int]:
        """Tokens of a member, and how many of them are targets with a loss weight."""
        if window == slice(None):
            return int(self._dataset.lengths[example]), int(self._dataset.supervised[example])
        weights = self._dataset.example(example)[1][window]
        return len(weights), int(np.count_nonzero(weights[1:]))

    def _row(self, row: int) -> list[Group]:
        """The groups of a row of the endless stream."""
        epoch = 0 if self._dataset.epochs_vary else row // self.rows(0)
        while self._start_of(epoch + 1) <= row:
            epoch += 1
        groups, plan = self._epoch(epoch)
        return [groups.group(g) for g in plan.row(row - self._start_of(epoch))]

    def _assemble(self, rows: list[list[Group]]) -> Batch:
        """Writes the groups of each row into arrays; see `Batch` for their meaning."""
        shape, slots = (len(rows), self.row_length), (len(rows), self.num_slots)
        ints = {
            name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segment_ids", "example_ids", "targets")
        }
        weights = np.zeros(shape, np.float32)
        extras = {name: _empty(value, shape, slots) for name, value in self._dataset.extras(0).items()}
        if self._grouped:
            extras["member"] = np.full(slots, -1, np.int32)
        for b, row in enumerate(rows):
            at, slot, unit, begin = 0, 0, 0, 0
            for group in row:
                for member, (example, window) in enumerate(group):
                    if self._unit == "example" or slot == 0 or (self._unit == "group" and member == 0):
                        unit, begin = unit + 1, at
                    ids, loss_weights, fields = self._dataset.example(example)
                    ids, loss_weights = ids[window], loss_weights[window]
                    here, inputs = slice(at, at + len(ids)), slice(at, at + len(ids) - 1)
                    ints["tokens"][b, here] = ids
                    ints["targets"][b, inputs] = ids[1:]
                    weights[b, inputs] = loss_weights[1:]
                    ints["example_ids"][b, here] = slot + 1
                    ints["segment_ids"][b, here] = unit
                    ints["positions"][b, here] = np.arange(at - begin, at - begin + len(ids))
                    if self._grouped:
                        fields = fields | {"member": member}
                    for name, value in fields.items():
                        if np.ndim(value):
                            extras[name][b, inputs] = value[window][1:]
                        else:
                            extras[name][b, slot] = value
                    at, slot = at + len(ids), slot + 1
        return Batch(**ints, weights=weights, extras=extras)


class _Epoch(NamedTuple):
    """The groups of an epoch, and which of them share a row."""

    groups: Groups
    plan: Plan


def _empty(value: Any, tokens: tuple[int, int], slots: tuple[int, int]) -> np.ndarray:
    """Room for an extra: [B, E] for a number an example, [B, T] for an array of one a token; integers start at -1."""
    shape = tokens if np.ndim(value) else slots
    if np.issubdtype(np.asarray(value).dtype, np.floating):
        return np.zeros(shape, np.float32)
    return np.full(shape, -1, np.int32)
