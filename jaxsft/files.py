"""Output files appear whole or not at all."""

import json
import os
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
