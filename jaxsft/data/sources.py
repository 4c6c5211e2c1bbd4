"""Where records come from: JSON, JSON Lines, CSV, Parquet, prepared TensorFlow datasets, local or remote; the world."""

import csv
import glob
import io
import json
import re
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from etils import epath

from jaxsft.config import SourceConfig
from jaxsft.errors import UserError
from jaxsft.validation import did_you_mean
from jaxsft.world import PREFIX as WORLD
from jaxsft.world import records as world

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
EXAMPLES = "examples"  # holds the records of a JSON file that is one object, as those of BIG-Bench Hard are
TFDS = "tfds:"
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Record = tuple[Any, str]  # a JSON value, and its place for messages


class Source(Protocol):
    """A sequence of records.

    Attributes:
      name: its tag in reports.
      files: the files that its records come from, for fingerprints.
      selection: which of their records, "" for all.
    """

    name: str
    files: list[epath.Path]
    selection: str

    def __len__(self) -> int:
        """How many records there are."""

    def records(self, start: int, stop: int) -> Iterator[Record]:
        """The records `start` up to `stop`, each with its place.

        Raises:
          UserError: for malformed records, naming file and line.
        """


def open_source(config: SourceConfig) -> Source:
    """Opens what `config.path` names.

    Raises:
      UserError: if there is nothing, or nothing of a known kind.
    """
    if not config.path:
        raise UserError(
            "no data was named; set config.data.path to a file, folder or glob, or fill config.data.sources."
        )
    if config.path.startswith(TFDS):
        return TfdsSource(config)
    if config.path.startswith(WORLD):
        return WorldSource(config)
    return FileSource(config)


def row_range(rows: str, total: int) -> tuple[int, int]:
    """The range that "start:stop" names, as in Python.

    Raises:
      UserError: if it is no such thing, or holds no row.
    """
    parts = rows.split(":") if rows else ["", ""]
    try:
        start, stop = (int(part) if part.strip() else None for part in parts)
    except ValueError as error:
        raise UserError(
            f"rows is {rows!r}; write 'start:stop' with whole numbers, such as ':-300' or '-300:'."
        ) from error
    first, last, _ = slice(start, stop).indices(total)
    if first >= last:
        raise UserError(f"rows {rows!r} of {total} leaves none; widen the range.")
    return first, last


class FileSource:
    """The records of files, one file after the other in order of their names."""

    def __init__(self, config: SourceConfig):
        self.selection = ""
        try:
            self.files = _expand(config.path)
        except ImportError as error:
            raise UserError(
                f"{config.path} cannot be opened: {error}; `pip install jaxsft[gcs]` adds gs://."
            ) from error
        self.name = config.name or (
            self.files[0].stem if len(self.files) == 1 else config.path.rstrip("/").split("/")[-1]
        )
        try:
            self._counts = [_count(file) for file in self.files]
        except OSError as error:
            raise UserError(f"{config.path} cannot be read: {error}.") from error
        if not sum(self._counts):
            raise UserError(f"{config.path} holds no records; is the file empty?")

    def __len__(self) -> int:
        return sum(self._counts)

    def records(self, start: int, stop: int) -> Iterator[Record]:
        """See `Source.records`."""
        first = 0
        for file, count in zip(self.files, self._counts):
            if first < stop and first + count > start:
                for i, record in enumerate(_read(file)):
                    if start <= first + i < stop:
                        yield record
            first += count


class TfdsSource:
    """A prepared dataset of tensorflow-datasets (array_record files), read without TensorFlow."""

    def __init__(self, config: SourceConfig):
        import tensorflow_datasets as tfds

        full_name, _, split = config.path.removeprefix(TFDS).partition(":")
        self.name, self.selection = config.name or full_name, split or "train"
        try:
            builder = tfds.builder(full_name, data_dir=config.data_dir or None, try_gcs=False)
            self._data = builder.as_data_source(split=self.selection)
        except (
            tfds.core.DatasetNotFoundError,
            ValueError,
            NotImplementedError,
            FileNotFoundError,
            AssertionError,
        ) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{config.path} cannot be read: {reason.rstrip('.')}; prepare it in the source's data_dir with "
                "`tfds build --file_format=array_record`, where TensorFlow is installed."
            ) from error
        self.files = [epath.Path(path) for path in builder.info.splits[self.selection].filepaths]

    def __len__(self) -> int:
        return len(self._data)

    def records(self, start: int, stop: int) -> Iterator[Record]:
        """See `Source.records`."""
        for i in range(start, stop):
            yield _plain(self._data[i]), f"{self.name}, split {self.selection}, row {i + 1}"


class WorldSource:
    """A split of the built-in world, made by code: `world:train`, see `jaxsft.world.records`."""

    def __init__(self, config: SourceConfig):
        split = config.path.removeprefix(WORLD)
        if split not in world.SPLITS:
            hint = did_you_mean(split, world.SPLITS) or f"; known are {', '.join(world.SPLITS)}."
            raise UserError(f"{config.path} is no split of the world{hint}")
        self.name, self.files = config.name or config.path, []
        self.selection = f"{config.path}, {world.fingerprint()}"
        self._records = world.split(split)

    def __len__(self) -> int:
        return len(self._records)

    def records(self, start: int, stop: int) -> Iterator[Record]:
        """See `Source.records`."""
        for i in range(start, stop):
            yield self._records[i], f"{self.name}, record {i + 1}"


def _plain(value: Any) -> Any:
    """NumPy values as JSON values; a sequence of records, stored as a record of sequences, as it was meant."""
    if isinstance(value, dict):
        plain = {name: _plain(item) for name, item in value.items()}
        for name, item in plain.items():
            if isinstance(item, dict) and item and all(isinstance(column, list) for column in item.values()):
                plain[name] = [dict(zip(item, row)) for row in zip(*item.values())]
        return plain
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value


def _expand(path: str) -> list[epath.Path]:
    """The files that a path, folder or glob names, in order of their names."""
    here = epath.Path(path)
    if here.is_dir():
        files = sorted(file for file in here.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise UserError(f"the folder {path} holds no data; known are {', '.join(SUFFIXES)}.")
        return files
    if glob.has_magic(path):
        anchor, _, pattern = path.rpartition("/")
        while glob.has_magic(anchor):
            anchor, _, part = anchor.rpartition("/")
            pattern = f"{part}/{pattern}"
        files = sorted(epath.Path(anchor or (path[:1] if path.startswith("/") else ".")).glob(pattern))
        if not files:
            raise UserError(f"no file fits {path}.")
    elif here.exists():
        files = [here]
    else:
        raise UserError(f"no file or folder {path}.")
    for file in files:
        if file.suffix not in SUFFIXES:
            raise UserError(f"{file} is of no known kind; known are {', '.join(SUFFIXES)}.")
    return files


def _count(file: epath.Path) -> int:
    if file.suffix == ".parquet":
        with file.open("rb") as stream:
            return _parquet(file, stream).metadata.num_rows
    if file.suffix == ".csv":
        return sum(1 for _ in _read_csv(file))
    if _is_array(file) or _is_object(file):
        return len(_read_array(file))
    with file.open("rb") as stream:
        return sum(1 for line in stream if line.strip())


def _read(file: epath.Path) -> Iterator[Record]:
    if file.suffix == ".parquet":
        return _read_parquet(file)
    if file.suffix == ".csv":
        return _read_csv(file)
    if _is_array(file) or _is_object(file):
        return ((record, f"{file}, record {i + 1}") for i, record in enumerate(_read_array(file)))
    return _read_lines(file)


def _is_array(file: epath.Path) -> bool:
    """Whether a JSON file is one array; else it has one record a line."""
    with file.open("rb") as stream:
        for line in stream:
            if line := line.removeprefix(b"\xef\xbb\xbf").strip():
                return line.startswith(b"[")
    return False


def _is_object(file: epath.Path) -> bool:
    """Whether a JSON file is one object that holds `EXAMPLES`; else it has one record a line."""
    if file.suffix != ".json":
        return False
    text = file.read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n")
    for part in (text.partition(b"\n")[0], text):
        try:
            value = json.loads(part)
        except ValueError:  # no JSON, or no text: the readers say so
            continue
        return isinstance(value, dict) and isinstance(value.get(EXAMPLES), list)
    return False


def _read_array(file: epath.Path) -> list[Any]:
    """The records of a file that is one value; those of an object are of a source that the file is named after."""
    try:
        content = file.read_bytes()
        value = json.loads(content.decode("utf-8-sig"))
        named = lambda record: {"source": file.stem} | record if isinstance(record, dict) else record
        records = value if isinstance(value, list) else [named(record) for record in value[EXAMPLES]]
        for i, record in enumerate(records if SURROGATE.search(content) else ()):
            _check_text(record, f"{file}, record {i + 1}")
        return records
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: malformed JSON ({error.msg}); mend the file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); convert it.") from error


def _read_lines(file: epath.Path) -> Iterator[Record]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{where}: malformed JSON ({error.msg} at column {error.colno}); mend the line."
                ) from error
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 text ({error.reason}); convert the file.") from error
            if SURROGATE.search(line):
                _check_text(record, where)
            yield record, where


def _check_text(record: Any, where: str) -> None:
    """JSON can spell half of a surrogate pair, which no tokenizer reads and no file of UTF-8 holds."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise UserError(f"{where}: {half!r} is half of a surrogate pair and no character; mend the text.") from error


def _read_csv(file: epath.Path) -> Iterator[Record]:
    """Rows as objects of texts, named by the first row."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); convert it.") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = next(rows, [])
        for row in rows:
            if row and len(row) != len(names):
                raise UserError(
                    f"{file}, line {rows.line_num}: {len(row)} fields under {len(names)} names; mend the row."
                )
            if row:
                yield dict(zip(names, row)), f"{file}, line {rows.line_num}"
    except csv.Error as error:
        raise UserError(f"{file}, line {rows.line_num}: malformed CSV ({error}); mend the file.") from error


def _read_parquet(file: epath.Path) -> Iterator[Record]:
    with file.open("rb") as stream:
        row = 0
        for batch in _parquet(file, stream).iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                row += 1
                yield record, f"{file}, row {row}"


def _parquet(file: epath.Path, stream: Any) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(stream)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file} is no Parquet file, or a truncated one ({str(error).splitlines()[0]}).") from error
