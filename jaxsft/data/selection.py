"""Examples ranked by a score that was made before training, and the best of them, or one part, selected.

Scores belong to examples, so neither the selection nor how examples stand together makes a table stale.
"""

import hashlib

import numpy as np

from jaxsft.config import DataConfig
from jaxsft.errors import UserError
from jaxsft.scoring.table import read_scores
from jaxsft.validation import did_you_mean


def read_ranking(config: DataConfig, examples_fingerprint: str, count: int) -> np.ndarray | None:
    """float32 [examples], the scores that `config.scores` and `config.score` name; None where none are named.

    Raises:
      UserError: for a table of other examples, one that lacks some, and one without that column.
    """
    if not config.scores:
        if config.keep < 1:
            raise UserError(
                f"config.data.keep is {config.keep:g}, but there is nothing to rank the examples by; name a table as "
                "config.data.scores, or leave keep at 1."
            )
        return None
    return _column(config.scores, config.score, "config.data.score", examples_fingerprint, count)


def read_part(config: DataConfig, examples_fingerprint: str, count: int) -> np.ndarray | None:
    """bool [examples], those in the part that `config.parts` and `config.part` name; None where all are wanted.

    Raises:
      UserError: for a table of other examples, and for a part that it does not have.
    """
    if config.part < 0:
        return None
    if not config.parts:
        raise UserError(
            f"config.data.part is {config.part}, but config.data.parts names no table of parts; name one, or leave "
            "part at -1."
        )
    parts = _column(config.parts, "part", "config.data.parts", examples_fingerprint, count)
    chosen = parts == config.part
    if not chosen.any():
        raise UserError(
            f"config.data.part is {config.part}, but the parts in {config.parts} are 0 to {int(parts.max())}."
        )
    return chosen


def part_count(path: str) -> int:
    """How many parts a table of parts has.

    Raises:
      UserError: if it is none.
    """
    columns = read_scores(path)[1]
    if "part" not in columns:
        raise UserError(f"config.data.parts={path} is no table of parts; it has {', '.join(columns)}.")
    return int(columns["part"].max()) + 1


def best(scores: np.ndarray, candidates: np.ndarray, share: float) -> np.ndarray:
    """bool [examples], the given share of the candidates with the highest scores; of equals the earlier example.

    Args:
      scores: [examples].
      candidates: bool [examples].
      share: in (0, 1]; at least one example is kept.
    """
    order = by_score(scores, np.flatnonzero(candidates))
    kept = np.zeros(len(scores), bool)
    kept[order[: max(1, round(share * len(order)))]] = True
    return kept


def by_score(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The members from the highest score to the lowest; of equals the earlier example first."""
    return members[np.lexsort((members, -scores[members]))]


def digest(scores: np.ndarray) -> str:
    """A fingerprint of the scores."""
    return hashlib.sha256(np.ascontiguousarray(scores, np.float32).tobytes()).hexdigest()[:32]


def _column(path: str, name: str, field: str, examples_fingerprint: str, count: int) -> np.ndarray:
    """float32 [examples], a column of a table of scores, in the examples' order."""
    examples, columns = read_scores(path, {"examples": examples_fingerprint})
    if name not in columns:
        near = did_you_mean(name, columns) or f"; it has {', '.join(columns)}."
        raise UserError(f"{field} is {name!r}, which is no column of {path}{near}")
    scores = columns[name]
    if isinstance(scores, list):
        raise UserError(f"{field} {name!r} holds a number a token; name one of a number an example.")
    if not np.array_equal(np.sort(examples), np.arange(count)):
        raise UserError(f"{path} scores {len(examples)} examples, but the data has {count}; make it again.")
    return scores[np.argsort(examples)]
