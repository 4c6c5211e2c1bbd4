"""The token cache: each source is rendered and tokenised once, into memory-mapped arrays in a fingerprinted folder.

A cache is written under a temporary name and renamed when whole, so a killed run leaves none that could be taken for
whole, and of several processes that write the same one the first to finish wins.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxsft.data.render import Example
from jaxsft.errors import UserError

VERSION = 7  # raise it when the same data would give other arrays
DEFAULT = "~/.cache/jaxsft"
META = "meta.json"


class Entry(NamedTuple):
    """An example on its way into the cache.

    Attributes:
      notice: what users should know about it, "" for nothing.
      variant: which of its record's conversations it is; 0 begins a new record.
    """

    example: Example
    source: str
    task_type: str
    notice: str = ""
    variant: int = 0


@dataclasses.dataclass(frozen=True)
class TokenCache:
    """The examples of one source.

    Attributes:
      ids: int32 [tokens], all examples one after the other.
      weights: float32 [tokens], loss weight of each token as a target.
      starts: int64 [examples + 1], where each example begins.
      sources: int32 [examples], index into `source_names`.
      task_types: int32 [examples], index into `task_type_names`.
      is_text: bool [examples], plain text (read in windows) or a conversation.
      firsts: int32 [examples], place of the first supervised token in its example.
      supervised: int32 [examples], how many tokens of it are supervised.
      records: int32 [examples], which record each is of.
      variants: int32 [examples], which of its record's conversations it is.
      notices: what users should know -> of how many examples.
      max_id: the largest token id.
      fingerprint: of the files, the rendering and the tokenizer.
    """

    ids: np.ndarray
    weights: np.ndarray
    starts: np.ndarray
    sources: np.ndarray
    task_types: np.ndarray
    is_text: np.ndarray
    firsts: np.ndarray
    supervised: np.ndarray
    records: np.ndarray
    variants: np.ndarray
    source_names: list[str]
    task_type_names: list[str]
    notices: dict[str, int]
    max_id: int
    fingerprint: str

    @property
    def num_records(self) -> int:
        """How many records were read."""
        return int(self.records[-1]) + 1 if len(self.records) else 0


ARRAYS = {
    "ids": np.int32, "weights": np.float32, "starts": np.int64, "sources": np.int32, "task_types": np.int32,
    "is_text": np.bool_, "firsts": np.int32, "supervised": np.int32, "records": np.int32,
    "variants": np.int32,
}  # fmt: skip


def cached(folder: str, key: dict[str, Any], build: Iterable[Entry]) -> TokenCache:
    """The cache of `key`, built from `build` unless it is there.

    Raises:
      UserError: if the folder cannot be written, or the disk is full.
    """
    fingerprint = hashlib.sha256(json.dumps({**key, "version": VERSION}, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder(folder) / fingerprint
    if not (path / META).is_file():
        temporary = path.with_name(f"{fingerprint}.{uuid.uuid4().hex}.tmp")
        with writing(path.parent):
            temporary.mkdir(parents=True)
            try:
                _write(temporary, build)
                _publish(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return _read(path, fingerprint)


def cache_folder(folder: str) -> Path:
    """The folder of all caches.

    Raises:
      UserError: if it is not local: arrays are memory-mapped.
    """
    if "://" in folder:
        raise UserError(f"config.data.cache_dir is {folder}; arrays are memory-mapped, so it must be a local folder.")
    return Path(folder or DEFAULT).expanduser()


def hash_files(files: list[epath.Path], folder: Path) -> list[str]:
    """SHA-256 of each file's bytes; hashes are remembered by path, size and time of change.

    Raises:
      UserError: if the memory cannot be written.
    """
    return [_hash_file(file, folder) for file in files]


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what a full or forbidden disk raises into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full while writing the token cache in {folder}; set config.data.cache_dir to another."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"the token cache {folder} cannot be written ({error.strerror}); set config.data.cache_dir to another."
            ) from error
        raise


def _hash_file(file: epath.Path, folder: Path) -> str:
    if "://" in str(file):
        stat = file.stat()
        key = f"{file} {stat.length} {stat.mtime}"
    else:
        stat = os.stat(file)
        key = f"{Path(file).resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    note = folder / "hashes" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if note.is_file() and len(known := note.read_text()) == 64:
        return known
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    with writing(folder):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f"{note.name}.{uuid.uuid4().hex}")
        temporary.write_text(digest.hexdigest())
        temporary.replace(note)
    return digest.hexdigest()


def _write(path: Path, entries: Iterable[Entry]) -> None:
    columns: dict[str, list[int]] = {name: [] for name in ARRAYS if name not in ("ids", "weights")}
    columns["starts"].append(0)
    source_names: dict[str, int] = {}
    task_type_names: dict[str, int] = {}
    notices: dict[str, int] = {}
    max_id = 0
    with open(path / "ids", "wb") as ids, open(path / "weights", "wb") as weights:
        record = -1
        for example, source, task_type, notice, variant in entries:
            record += variant == 0
            targets = np.flatnonzero(example.weights)
            ids.write(example.ids.astype(np.int32).data)
            weights.write(example.weights.astype(np.float32).data)
            max_id = max(max_id, int(example.ids.max(initial=0)))
            columns["starts"].append(columns["starts"][-1] + len(example.ids))
            columns["sources"].append(source_names.setdefault(source, len(source_names)))
            columns["task_types"].append(task_type_names.setdefault(task_type, len(task_type_names)))
            columns["is_text"].append(example.is_text)
            columns["firsts"].append(targets[0] if len(targets) else 0)
            columns["supervised"].append(len(targets))
            columns["records"].append(record)
            columns["variants"].append(variant)
            if notice:
                notices[notice] = notices.get(notice, 0) + 1
        for stream in (ids, weights):
            stream.flush()
            os.fsync(stream.fileno())
    for name, values in columns.items():
        (path / name).write_bytes(np.array(values, ARRAYS[name]).data)
    meta = {
        "source_names": list(source_names),
        "task_type_names": list(task_type_names),
        "notices": notices,
        "max_id": max_id,
    }
    (path / META).write_text(json.dumps(meta))


def _publish(temporary: Path, path: Path) -> None:
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (path / META).is_file():
            raise  # else another process was first


def _read(path: Path, fingerprint: str) -> TokenCache:
    meta = json.loads((path / META).read_text())
    arrays = {name: _map(path / name, dtype) for name, dtype in ARRAYS.items()}
    return TokenCache(**arrays, **meta, fingerprint=fingerprint)


def _map(path: Path, dtype: Any) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
