"""Output files and folders appear whole or not at all, and no folder that holds something is written into."""

import contextlib
import io
import json
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from jaxsft.errors import UserError


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a file, replacing an older one only when the new one is complete.

    Raises:
      UserError: if it cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """As `write_text`, of bytes."""
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; choose another output path.") from error


def write_json(path: epath.PathLike, value: Any) -> None:
    """`write_text` of a value as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_npz(path: epath.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file, none of them pickled.

    Raises:
      ValueError: if it is none, or damaged.
      OSError: if it cannot be read.
    """
    try:
        held = np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False)
        if not isinstance(held, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with held:
            return {name: held[name] for name in held.files}
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from error


def json_lines(text: str) -> list[Any]:
    """The values of JSON Lines as this library writes them; blank lines are none.

    Not of `str.splitlines`, for which a line ends at U+2028, U+0085 and others too, which stand in texts as they are.
    """
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def as_json_lines(values: Iterable[Any]) -> str:
    """JSON Lines that `json_lines` reads."""
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def check_new_folder(path: epath.PathLike) -> None:
    """Refuses a folder that holds anything.

    Raises:
      UserError: if it does, or is a file.
    """
    path = epath.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty; nothing is overwritten, so give another folder or remove it.")


@contextlib.contextmanager
def new_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """A folder that appears at `path` whole, when the body is done, or not at all.

    It is written beside its place and renamed. Object stores cannot rename: there it is written in place, and the file
    that makes it valid should come last.

    Raises:
      UserError: if `path` holds something already, or cannot be written.
    """
    path = epath.Path(path)
    remote = "://" in str(path)
    check_new_folder(path)
    folder = path if remote else path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=remote)
        yield folder
        if not remote:
            if path.exists():
                path.rmdir()
            folder.rename(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        if not remote:
            shutil.rmtree(folder, ignore_errors=True)
