"""Scores of examples in a Parquet file, with the fingerprint of what they were made from.

Columns: `example` (int64, the index in its data set) and one for each score, float32 or a list of float32 (a vector, or
one number a token, of the token as a target). The schema's metadata holds the key, as JSON under `jaxsft`.
"""

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jaxsft import files
from jaxsft.errors import UserError

Scores = dict[str, Any]  # name -> float32 [examples], or a list of float32 arrays, one for each example
KEY = b"jaxsft"


def write_scores(path: epath.PathLike, key: dict[str, Any], examples: np.ndarray, scores: Scores) -> None:
    """Writes a table, whole or not at all.

    Args:
      path: local or on an object store.
      key: what decides the scores: fingerprints of data and model, and how they were computed. Plain JSON values.
      examples: int64 [n], indices.
      scores: n scores of each name.

    Raises:
      UserError: if it cannot be written.
    """
    columns = {"example": pa.array(np.asarray(examples, np.int64))}
    for name, values in scores.items():
        kind = pa.list_(pa.float32()) if np.ndim(values[0] if len(values) else 0) else pa.float32()
        columns[name] = pa.array(list(values) if kind != pa.float32() else np.asarray(values, np.float32), kind)
    table = pa.table(columns).replace_schema_metadata({KEY: json.dumps(key)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    files.write_bytes(path, buffer.getvalue())


def read_scores(path: epath.PathLike, expected: dict[str, Any] | None = None) -> tuple[np.ndarray, Scores]:
    """Reads a table: the examples' indices, and their scores.

    Args:
      path: the file.
      expected: parts of the key that it must have.

    Raises:
      UserError: if it is none, or was made from something else than `expected`, naming what differs.
    """
    path = epath.Path(path)
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
    except FileNotFoundError as error:
        raise UserError(f"there are no scores at {path}; make them with scripts/run.py.") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no Parquet file: {error}.") from error
    key = read_key(table, path)
    for name, value in (expected or {}).items():
        if key.get(name) != value:
            raise UserError(
                f"the scores in {path} are stale: they were made with {name} = {key.get(name)!r}, now it is {value!r}; "
                "make them again (remove the file, or name another)."
            )
    scores = {}
    for name in table.column_names[1:]:
        column = table.column(name)
        by_token = pa.types.is_list(column.type)
        scores[name] = [np.asarray(v, np.float32) for v in column.to_pylist()] if by_token else column.to_numpy()
    return table.column("example").to_numpy(), scores


def read_key(table: pa.Table, path: epath.PathLike) -> dict[str, Any]:
    """The key of a table.

    Raises:
      UserError: if it has none.
    """
    metadata = table.schema.metadata or {}
    if KEY not in metadata or table.column_names[0] != "example":
        raise UserError(f"{path} is no table of scores: it lacks the column 'example', or the key they were made from.")
    return json.loads(metadata[KEY])
