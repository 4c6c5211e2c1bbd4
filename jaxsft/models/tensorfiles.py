"""The safetensors format: an 8-byte little-endian header length, a JSON header, then the tensors' bytes.

Tensors are read piece by piece (local files are memory-mapped, remote ones read by range) and written one at a time, so
that neither direction ever holds a file in memory. Every header is checked before anything is read.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from jaxsft.errors import UserError

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
INTEGERS: dict[str, np.dtype] = {
    **{f"I{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    "BOOL": np.dtype(bool),
}
NAMES = {dtype: name for name, dtype in (DTYPES | INTEGERS).items()}
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


class Entry(NamedTuple):
    """A tensor in a file: its dtype as the header names it, its shape, and the byte range in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """A safetensors file open for reading.

    Args:
      path: the file.
      integers: whether tensors of whole numbers and truth values are read too: in a model's file they are quantised
        weights, which mean nothing by themselves.

    Raises:
      UserError: if the file is not whole, naming it.
    """

    def __init__(self, path: epath.PathLike, integers: bool = False):
        self.path = epath.Path(path)
        self.entries = _read_header(self.path)
        self._dtypes = DTYPES | INTEGERS if integers else DTYPES
        self._bytes: np.memmap | None = None

    def read(self, name: str, index: Sequence[slice] = (), mapped: bool = True) -> np.ndarray:
        """A tensor, or the part of it that `index` (slices with step 1) names.

        Args:
          name: its key.
          index: the part; () is all of it.
          mapped: whether the pages of a local file may stand for it, which stay in memory as long as the system likes;
            if not, the rows that `index` spans are read into memory of their own.

        Raises:
          UserError: for a dtype that is no plain float, unless whole numbers are asked for.
        """
        entry = self.entries[name]
        if entry.dtype not in self._dtypes:
            raise UserError(
                f"{self.path}: {name} is stored as {entry.dtype}; only {', '.join(DTYPES)} are read, so give the "
                "model's unquantised weights."
            )
        dtype, rest = self._dtypes[entry.dtype], tuple(index)
        local = "://" not in str(self.path)
        if local and mapped:
            if self._bytes is None:
                self._bytes = np.memmap(self.path, np.uint8, "r")
            return self._bytes[entry.start : entry.stop].view(dtype).reshape(entry.shape)[rest]
        first, last = 0, entry.shape[0] if entry.shape else 1
        if rest:
            first, last, _ = rest[0].indices(last)
        row = (entry.stop - entry.start) // max(entry.shape[0] if entry.shape else 1, 1)
        start, count = entry.start + first * row, (last - first) * row // dtype.itemsize
        if local:
            array = np.fromfile(str(self.path), dtype, count, offset=start)
        else:
            with self.path.open("rb") as file:
                file.seek(start)
                array = np.frombuffer(file.read(count * dtype.itemsize), dtype)
        if array.size != count:
            raise UserError(f"{self.path} ended while {name} was read; download it again.")
        array = array.reshape((last - first, *entry.shape[1:]) if entry.shape else ())
        return array[(slice(None), *rest[1:])] if rest else array


def write(
    path: epath.PathLike,
    entries: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    produce: Callable[[str], np.ndarray],
) -> None:
    """Writes one file, a tensor at a time.

    Args:
      path: the new file.
      entries: name -> (dtype, shape), in the order of writing.
      produce: called once for each name, in that order.

    Raises:
      OSError: if it cannot be written.
    """
    content = _header(entries)
    with epath.Path(path).open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for name, (dtype, shape) in entries.items():
            array = produce(name)
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name} is {array.dtype}{array.shape}, announced as {dtype}{shape}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def size(entries: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> int:
    """Bytes of the file that `write` makes of these entries."""
    return 8 + len(_header(entries)) + sum(math.prod(shape) * dtype.itemsize for dtype, shape in entries.values())


def shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, cut into files of at most `limit` bytes each (a larger tensor gets a file of its own)."""
    files: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if files[-1] and held + size > limit:
            files.append([])
            held = 0
        files[-1].append(name)
        held += size
    return files


def _header(entries: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> bytes:
    """The JSON header, filled up to a multiple of 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in entries.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    content = json.dumps(header, separators=(",", ":")).encode()
    return content + b" " * (-len(content) % 8)


def _read_header(path: epath.Path) -> dict[str, Entry]:
    size = path.stat().length
    broken = lambda why: UserError(f"{path} is no whole safetensors file ({why}); download or save it again.")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise broken(f"its header is cut off after {size} bytes")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise broken("its header is not JSON") from None
    if not isinstance(header, dict):
        raise broken("its header is no table of tensors")
    header.pop("__metadata__", None)
    start = 8 + length
    entries = {}
    for name, fields in header.items():
        try:
            begin, end = fields["data_offsets"]
            entries[name] = Entry(fields["dtype"], tuple(fields["shape"]), start + begin, start + end)
        except (KeyError, TypeError, ValueError):
            raise broken(f"its header describes {name} wrongly") from None
    _check_ranges(entries.items(), start, size, broken)
    return entries


def _check_ranges(
    entries: Iterable[tuple[str, Entry]], start: int, size: int, broken: Callable[[str], UserError]
) -> None:
    """The tensors' byte ranges fit their shapes and tile the file without gap."""
    end = start
    for name, entry in sorted(entries, key=lambda item: item[1].start):
        dtype = (DTYPES | INTEGERS).get(entry.dtype)
        if dtype is not None and math.prod(entry.shape) * dtype.itemsize != entry.stop - entry.start:
            raise broken(f"{name} has {entry.stop - entry.start} bytes, which is not {entry.dtype} of {entry.shape}")
        if entry.start != end:
            raise broken(f"{name} does not begin where the tensor before it ends")
        end = entry.stop
    if end != size:
        raise broken(f"its tensors need {end} bytes, the file has {size}")
