"""How many singular vectors of a change are kept, at how many bits each, and what that takes, to the byte."""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxsft.config import CompressConfig
from jaxsft.errors import UserError

MOST_BITS = 16
Shape = tuple[int, int]  # of a matrix in a file, [out, in]
Entries = dict[str, tuple[np.dtype, tuple[int, ...]]]  # name -> dtype and shape, as `tensorfiles.write` takes them


class Group(NamedTuple):
    """Consecutive singular vectors, left and right, whose entries are coded by the same number of bits."""

    bits: int
    columns: int


def check(config: CompressConfig) -> None:
    """Refuses groups that cannot be, whatever the model is.

    Raises:
      UserError: naming the field.
    """
    bits, columns = config.bits, config.columns
    if not bits or not all(1 <= b <= MOST_BITS for b in bits):
        raise UserError(f"config.bits is {bits!r}; give each group 1 to {MOST_BITS} bits.")
    if len(columns) not in (len(bits) - 1, len(bits)) or any(c < 1 for c in columns):
        raise UserError(
            f"config.columns is {columns!r} for config.bits {bits!r}; give each group a positive number, or all groups "
            "but the last."
        )


def choose(config: CompressConfig, shape: Shape) -> tuple[Group, ...]:
    """The groups of a matrix: those of config.columns or, one after the other, what config.size_ratio leaves room for.

    The paper's are 2, 32 and the rest at 8, 3 and 2 bits. Where even the first groups do not fit, they are cut, and
    those behind them have what little is left: small matrices keep few singular vectors.

    Returns:
      Groups that hold at least one column; () where nothing fits.
    """
    left, budget, groups = min(shape), 16 * math.prod(shape) / config.size_ratio, []
    rationed = len(config.columns) < len(config.bits)
    for i, bits in enumerate(config.bits):
        columns = min(left, config.columns[i]) if i < len(config.columns) else left
        if rationed:
            size = lambda count: _size(Group(bits, count), shape, config)  # noqa: B023
            columns = bisect.bisect_right(range(1, columns + 1), budget, key=size)
            budget -= size(columns)
        if columns:
            groups.append(Group(bits, columns))
        left -= columns
    return tuple(groups)


def cut(groups: Sequence[Group], rank: int) -> tuple[Group, ...]:
    """The groups of a change of lower rank: those behind it hold nothing and are left out."""
    kept = []
    for bits, columns in groups:
        columns = min(columns, rank - sum(group.columns for group in kept))
        if columns > 0:
            kept.append(Group(bits, columns))
    return tuple(kept)


def code_bits(groups: Sequence[Group], shape: Shape) -> int:
    """Bits of the codes alone, which is what the paper counts: sum_g b_g r_g (out + in)."""
    return sum(bits * columns * sum(shape) for bits, columns in groups)


def entries(groups: Sequence[Group], shape: Shape, group_size: int) -> Entries:
    """The arrays of a compressed change, see `jaxsft.compression.delta.Coded`."""
    columns = sum(group.columns for group in groups)
    scales = columns * sum(blocks(length, group_size) for length in shape)
    codes = sum(part for group in groups for part in parts(group, shape, group_size))
    return {
        "singular_values": (np.dtype(np.float32), (columns,)),
        "scales": (np.dtype(np.float16), (scales,)),
        "codes": (np.dtype(np.uint8), (codes,)),
    }


def parts(group: Group, shape: Shape, group_size: int) -> list[int]:
    """Bytes of a group's packed parts: zero points and codes of the left vectors, then of the right ones."""
    counts = [group.columns * n for length in shape for n in (blocks(length, group_size), length)]
    return [-(-count * group.bits // 8) for count in counts]


def blocks(length: int, group_size: int) -> int:
    """How many scales a vector has."""
    return -(-length // group_size)


def total(entries: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> int:
    """Bytes of arrays."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in entries.values())


def _size(group: Group, shape: Shape, config: CompressConfig) -> int:
    """Bits that count towards config.size_ratio."""
    if config.counts == "codes":
        return code_bits([group], shape)
    return 8 * total(entries([group], shape, config.group_size))
