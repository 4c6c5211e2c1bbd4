"""A batched, sharded pass over a data set that leaves one score, a vector, or one score a token, for every example.

What is done is kept in parts beside the table, so a pass that was broken off goes on where it was.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from jaxsft.data.batch import Batch
from jaxsft.data.dataset import Dataset
from jaxsft.data.loader import Loader
from jaxsft.errors import UserError
from jaxsft.evaluation.scoring import to_devices
from jaxsft.scoring.table import Scores, read_scores, write_scores

PART = 64  # batches between saves

Score = Callable[[Batch], dict[str, jax.Array]]


def score_examples(
    score: Score, dataset: Dataset, loader: Loader, mesh: Mesh, path: epath.PathLike, key: dict[str, Any], rows: int
) -> Scores:
    """Scores every example once, or reads what is there.

    Args:
      score: a compiled function from a batch on the devices to arrays that are the same on every device:
        `example_index` int32 [B, E] and scores float32 [B, E], or vectors [B, E, D]; or scores of tokens [B, T], and
        then `example_ids` int32 [B, T] too.
      dataset: the examples.
      loader: of the data set; its rows are those of training, so the same kernels run.
      mesh: the mesh that the model lives on.
      path: the table, a `.parquet` file.
      key: what decides the scores; see `write_scores`.
      rows: rows of a batch.

    Returns:
      name -> float32 [examples] in the data set's order, or a list of arrays: vectors, or one number a token.

    Raises:
      UserError: if there is a table made from something else, or a score is not finite.
    """
    path = epath.Path(path)
    if path.exists():
        return _ordered(*read_scores(path, key), len(dataset), path)
    parts = _Parts(path, key | {"rows": rows, "length": loader.row_length, "slots": loader.num_slots})
    done = list(parts.read())
    bar = tqdm(total=len(dataset), desc=f"scoring {path.stem}", unit="example", leave=False, disable=None)
    with jax.set_mesh(mesh), bar:
        bar.update(sum(len(examples) for examples, _ in done))
        waiting: list[tuple[np.ndarray, Scores]] = []
        pending = None
        for batch in loader.evaluation_batches(rows, first=len(done) * PART):
            ready, pending = pending, score(to_devices(batch, mesh))  # read one batch late: the device never waits
            if ready is not None:
                waiting.append(_on_host(ready, dataset))
                bar.update(len(waiting[-1][0]))
            if len(waiting) == PART:
                done.append(parts.write(len(done), waiting))
                waiting = []
        done += [] if not waiting else [_join(waiting)]
        done += [] if pending is None else [_on_host(pending, dataset)]
    examples, scores = _join(done)
    result = _ordered(examples, scores, len(dataset), path)
    if jax.process_index() == 0:
        write_scores(path, key, np.arange(len(dataset)), result)
        parts.remove()
    return result


class _Parts:
    """What a broken-off pass has done, in files of `PART` batches."""

    def __init__(self, path: epath.Path, key: dict[str, Any]):
        self._folder, self._key = path.with_suffix(".parts"), key

    def read(self) -> list[tuple[np.ndarray, Scores]]:
        """The parts that are there, in order; those of another pass are removed."""
        found = []
        try:
            while (file := self._folder / f"{len(found):05d}.parquet").exists():
                found.append(read_scores(file, self._key))
        except UserError:
            self.remove()
            return []
        return found

    def write(self, index: int, waiting: list[tuple[np.ndarray, Scores]]) -> tuple[np.ndarray, Scores]:
        """Joins what is waiting and keeps it."""
        examples, scores = _join(waiting)
        if jax.process_index() == 0:
            write_scores(self._folder / f"{index:05d}.parquet", self._key, examples, scores)
        return examples, scores

    def remove(self) -> None:
        """Removes all parts."""
        if jax.process_index() == 0 and self._folder.exists():
            self._folder.rmtree()


def _on_host(scores: dict[str, jax.Array], dataset: Dataset) -> tuple[np.ndarray, Scores]:
    """The indices of the examples of a batch, and their scores."""
    host = jax.device_get(scores)
    index, ids = host.pop("example_index"), host.pop("example_ids", None)
    rows, slots = np.nonzero(index >= 0)
    examples = index[rows, slots].astype(np.int64)
    result: Scores = {}
    for name, values in host.items():
        if values.shape[:2] == index.shape and values.ndim == 3:
            result[name] = list(values[rows, slots].astype(np.float32))
            continue
        if values.shape == index.shape:
            result[name] = values[rows, slots].astype(np.float32)
            continue
        result[name] = []
        for row, slot, example in zip(rows, slots, examples):
            own = np.zeros(dataset.lengths[example], np.float32)
            own[1:] = values[row, ids[row] == slot + 1][: len(own) - 1]
            result[name].append(own)
    return examples, result


def _join(parts: list[tuple[np.ndarray, Scores]]) -> tuple[np.ndarray, Scores]:
    examples = np.concatenate([examples for examples, _ in parts])
    scores: Scores = {}
    for name in parts[0][1]:
        columns = [part[name] for _, part in parts]
        if isinstance(columns[0], list):
            scores[name] = [values for column in columns for values in column]
        else:
            scores[name] = np.concatenate(columns)
    return examples, scores


def _ordered(examples: np.ndarray, scores: Scores, count: int, path: epath.Path) -> Scores:
    """Scores in the order of the examples, of which each must have been scored once."""
    order = np.argsort(examples, kind="stable")
    if not np.array_equal(examples[order], np.arange(count)):
        raise UserError(f"{path} holds scores of {len(examples)} examples, but the data has {count}; make them again.")
    result: Scores = {}
    for name, values in scores.items():
        result[name] = [values[i] for i in order] if isinstance(values, list) else values[order]
        flat = np.concatenate(result[name]) if isinstance(values, list) else result[name]
        if not np.isfinite(flat).all():
            raise UserError(f"{path}: the score {name!r} is not finite for some examples; the model does not fit them.")
    return result
