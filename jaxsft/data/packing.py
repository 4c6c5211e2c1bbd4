"""The packing plan: which groups share a row, as a pure function of lengths, seed and epoch."""

from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """The table of an epoch's rows.

    Attributes:
      groups: int64 [N], indices of groups, row after row.
      starts: int64 [rows + 1], where each row begins in `groups`.
    """

    groups: np.ndarray
    starts: np.ndarray

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.starts) - 1

    def row(self, r: int) -> np.ndarray:
        """The groups of row r."""
        return self.groups[self.starts[r] : self.starts[r + 1]]


def plan(
    lengths: np.ndarray,
    max_length: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    packing: bool = True,
    max_examples: int = 64,
    sizes: np.ndarray | None = None,
    shuffle: bool = True,
) -> Plan:
    """Lays out groups in rows of at most `max_length` tokens and `max_examples` examples.

    Packing is best-fit-decreasing: the longest group first, each into the fullest row that still takes it. Groups of
    one length are interchangeable, so which of them meet, and the order of rows, is drawn anew from (seed, epoch); the
    number of rows depends on the lengths alone.

    Args:
      lengths: int [N], tokens of each group, between 1 and `max_length`.
      max_length: tokens of a row.
      seed: of the order.
      epoch: of the order.
      packing: False gives one group a row.
      max_examples: bound on the examples of a row.
      sizes: int [N], examples of each group; default 1.
      shuffle: False keeps the groups' own order within a length, and rows in the order of their first group.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= max_length:
        raise ValueError(f"lengths of groups must be in 1..{max_length}, but are in {lengths.min()}..{lengths.max()}")
    sizes = np.ones(len(lengths), np.int64) if sizes is None else np.asarray(sizes)
    if len(sizes) and sizes.max() > max_examples and packing:
        raise ValueError(f"a group holds {sizes.max()} examples, more than a row's {max_examples} slots")
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    if not packing:
        return Plan(order, np.arange(len(order) + 1))
    order = order[np.lexsort((-sizes[order], -lengths[order]))]
    rows = _best_fit(lengths[order].tolist(), sizes[order].tolist(), max_length, max_examples)
    return _table(order, rows, random if shuffle else None)


def _best_fit(lengths: list[int], sizes: list[int], max_length: int, max_examples: int) -> np.ndarray:
    """The row of each group, groups being sorted by falling length.

    `open_rows[space]` is a stack of the rows with that much space, and bit `space` of `spaces` says that it is not
    empty: the lowest bit at or above a length is the best fit.
    """
    open_rows: list[list[int]] = [[] for _ in range(max_length + 1)]
    spaces, filled, chosen = 0, [], []
    for length, size in zip(lengths, sizes):
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[space].pop()
            if not open_rows[space]:
                spaces ^= 1 << space
        else:
            space, row = max_length, len(filled)
            filled.append(0)
        if filled[row] + size > max_examples:  # only groups of several examples get here; the row is closed
            row, space = len(filled), max_length
            filled.append(0)
        filled[row] += size
        chosen.append(row)
        space -= length
        if space and filled[row] < max_examples:
            open_rows[space].append(row)
            spaces |= 1 << space
    return np.array(chosen, np.int64)


def _table(order: np.ndarray, rows: np.ndarray, random: np.random.Generator | None) -> Plan:
    num_rows = int(rows.max()) + 1 if len(rows) else 0
    if random is None:
        first = np.full(num_rows, len(order))
        np.minimum.at(first, rows, order)
        rank = np.argsort(np.argsort(first))
        inside = order
    else:
        rank = random.permutation(num_rows)
        inside = random.permutation(len(order))
    by_row = np.lexsort((inside, rank[rows]))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rank[rows], minlength=num_rows))])
    return Plan(order[by_row], starts.astype(np.int64))
