"""Output files and folders appear whole or not at all, and nothing that was there before is lost."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from jaxsft.errors import UserError


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a file, replacing an older one only when the new one is complete.

    Raises:
      UserError: if it cannot be written.
    """
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; choose another output path.") from error


def write_json(path: epath.PathLike, value: Any) -> None:
    """`write_text` of a value as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def check_new_folder(path: epath.PathLike) -> None:
    """Refuses a folder that holds anything.

    Raises:
      UserError: if it does, or is a file.
    """
    path = epath.Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name a new or empty folder.")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} is not empty, and nothing is overwritten; name a new or empty folder.")


@contextlib.contextmanager
def new_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """A folder to fill, which takes its name `path` when the block ends without error, and is removed otherwise.

    Raises:
      UserError: if `path` exists and is not empty, or cannot be written.
    """
    path = epath.Path(path)
    check_new_folder(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if path.exists():
                path.rmdir()
            temporary.rename(path)
        finally:
            if temporary.exists():
                temporary.rmtree()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; choose another output folder.") from error
