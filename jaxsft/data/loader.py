"""Batches by step: the state of the data is the step, and nothing else.

Epochs follow each other as one stream of rows, of which step s takes the rows s * batch_size onwards; the last batch of
an epoch is filled from the next. Each process assembles its share of the same global batch.
"""

import functools
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from jaxsft.config import DataConfig
from jaxsft.data.batch import Batch
from jaxsft.data.dataset import Dataset
from jaxsft.data.packing import Plan, plan
from jaxsft.errors import UserError

THREADS, PREFETCH = 2, 4


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
        self._group_lengths = dataset.groups.lengths(dataset.lengths)
        self._group_supervised = dataset.groups.lengths(dataset.supervised)
        self._group_sizes = dataset.groups.sizes()
        self.num_slots = config.max_examples_per_row if config.packing else int(self._group_sizes.max())
        self._plan = functools.lru_cache(maxsize=3)(self._make_plan)
        self._rows_before, self._lock = [0], threading.Lock()
        self._share(batch_size)

    def rows(self, epoch: int = 0) -> int:
        """How many rows an epoch has."""
        return self._plan(epoch).num_rows

    def steps(self, epochs: float) -> int:
        """Optimizer steps that see every row of that many epochs."""
        whole = int(epochs)
        rows = self._start_of(whole) + math.ceil((epochs - whole) * self.rows(whole) if epochs > whole else 0)
        return math.ceil(rows / self.batch_size)

    def fill_rate(self, epoch: int = 0) -> float:
        """Share of an epoch's slots that hold tokens."""
        table = self._plan(epoch)
        tokens = self._group_lengths[self._dataset.epoch(epoch)].sum()
        return float(tokens / (table.num_rows * self.row_length))

    def rows_without_slot(self, epoch: int = 0) -> int:
        """How many rows of an epoch hold as many examples as they may."""
        table = self._plan(epoch)
        return int((np.add.reduceat(self._group_sizes[table.groups], table.starts[:-1]) == self.num_slots).sum())

    def batch(self, step: int) -> Batch:
        """This process's rows of the batch of optimizer step `step`, counted from 0; NumPy arrays."""
        first = step * self.batch_size
        return self._assemble([self._row(first + r) for r in self._share(self.batch_size)])

    def shapes(self) -> Batch:
        """The global batch as `jax.ShapeDtypeStruct`s."""
        one = self._assemble([np.zeros(0, np.int64)])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.batch_size, *x.shape[1:]), x.dtype), one)

    def counts(self, step: int) -> dict[str, int]:
        """Tokens of the global batch of a step: `slots` it has, `real` ones in them, `supervised` ones among these."""
        groups = np.concatenate([self._row(step * self.batch_size + r) for r in range(self.batch_size)])
        real, supervised = int(self._group_lengths[groups].sum()), int(self._group_supervised[groups].sum())
        return {"slots": self.batch_size * self.row_length, "real": real, "supervised": supervised}

    @property
    def mean_unit_length(self) -> float:
        """Mean over tokens of the length of the attention unit that they sit in."""
        lengths = np.add.reduceat(self._dataset.lengths, self._dataset.groups.examples[:-1]).astype(np.float64)
        return float((lengths**2).sum() / lengths.sum())

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps `start` up to `stop`, assembled ahead by threads; errors are raised here."""
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=PREFETCH)
        return iter(grain.MapDataset.range(start, stop).map(self.batch).to_iter_dataset(options))

    def evaluation_batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Every example once, in the data's order as far as packing allows; the last batch ends in empty rows."""
        batch_size = batch_size or self.batch_size
        table = self._layout(np.arange(len(self._dataset.groups)), 0, shuffle=False)
        for first in range(0, table.num_rows, batch_size):
            rows = [first + r for r in self._share(batch_size)]
            yield self._assemble([table.row(r) if r < table.num_rows else table.groups[:0] for r in rows])

    def _share(self, batch_size: int) -> list[int]:
        if batch_size % self._share_count:
            raise UserError(
                f"a batch of {batch_size} rows cannot be split over {self._share_count} processes' devices; "
                "choose a multiple."
            )
        size = batch_size // self._share_count
        return [share * size + row for share in self._shares for row in range(size)]

    def _make_plan(self, epoch: int) -> Plan:
        return self._layout(self._dataset.epoch(epoch), epoch, shuffle=True)

    def _layout(self, groups: np.ndarray, epoch: int, shuffle: bool) -> Plan:
        table = plan(
            self._group_lengths[groups],
            self.row_length,
            seed=self._seed,
            epoch=epoch,
            packing=self._packing,
            max_examples=self.num_slots,
            sizes=self._group_sizes[groups],
            shuffle=shuffle,
        )
        return Plan(groups[table.groups], table.starts)

    def _start_of(self, epoch: int) -> int:
        """Rows of all epochs before `epoch`."""
        if not self._dataset.epochs_vary:
            return epoch * self.rows(0)
        with self._lock:
            while len(self._rows_before) <= epoch:
                self._rows_before.append(self._rows_before[-1] + self.rows(len(self._rows_before) - 1))
            return self._rows_before[epoch]

    def _row(self, row: int) -> np.ndarray:
        """The groups of a row of the endless stream."""
        epoch = 0 if self._dataset.epochs_vary else row // self.rows(0)
        while self._start_of(epoch + 1) <= row:
            epoch += 1
        return self._plan(epoch).row(row - self._start_of(epoch))

    def _assemble(self, rows: list[np.ndarray]) -> Batch:
        """Writes the groups of each row into arrays; see `Batch` for their meaning."""
        shape, slots = (len(rows), self.row_length), (len(rows), self.num_slots)
        ints = {
            name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segment_ids", "example_ids", "targets")
        }
        weights = np.zeros(shape, np.float32)
        extras = {name: _empty(value, shape, slots) for name, value in self._dataset.extras(0).items()}
        groups = self._dataset.groups
        for b, row in enumerate(rows):
            at, unit, slot = 0, 0, 0
            for group in row:
                for u in range(groups.units[group], groups.units[group + 1]):
                    unit, begin = unit + 1, at
                    for example in range(groups.examples[u], groups.examples[u + 1]):
                        ids, loss_weights, fields = self._dataset.example(example)
                        here = slice(at, at + len(ids))
                        ints["tokens"][b, here] = ids
                        ints["targets"][b, at : at + len(ids) - 1] = ids[1:]
                        weights[b, at : at + len(ids) - 1] = loss_weights[1:]
                        ints["example_ids"][b, here] = slot + 1
                        for name, value in fields.items():
                            if np.ndim(value):
                                extras[name][b, at : at + len(ids) - 1] = value[1:]
                            else:
                                extras[name][b, slot] = value
                        at, slot = at + len(ids), slot + 1
                    ints["segment_ids"][b, begin:at] = unit
                    ints["positions"][b, begin:at] = np.arange(at - begin)
        return Batch(**ints, weights=weights, extras=extras)


def _empty(value: Any, tokens: tuple[int, int], slots: tuple[int, int]) -> np.ndarray:
    """Room for an extra: [B, E] for a number an example, [B, T] for an array of one a token; integers start at -1."""
    shape = tokens if np.ndim(value) else slots
    if np.issubdtype(np.asarray(value).dtype, np.floating):
        return np.zeros(shape, np.float32)
    return np.full(shape, -1, np.int32)
