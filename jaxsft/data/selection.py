"""Examples ranked by a score that was made before training, and the best of them selected.

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
    examples, columns = read_scores(config.scores, {"examples": examples_fingerprint})
    if config.score not in columns:
        near = did_you_mean(config.score, columns) or f"; it has {', '.join(columns)}."
        raise UserError(f"config.data.score is {config.score!r}, which is no column of {config.scores}{near}")
    scores = columns[config.score]
    if isinstance(scores, list):
        raise UserError(f"config.data.score {config.score!r} holds a number a token; name one of a number an example.")
    if not np.array_equal(np.sort(examples), np.arange(count)):
        raise UserError(f"{config.scores} scores {len(examples)} examples, but the data has {count}; make it again.")
    return scores[np.argsort(examples)]


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
