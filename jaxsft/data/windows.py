"""The truncation policy: which examples of a cache are used, and how far."""

import dataclasses

import numpy as np

from jaxsft.config import DataConfig
from jaxsft.data.cache import TokenCache
from jaxsft.data.grouping import GROUPINGS, longest
from jaxsft.data.report import CUT_TARGET, LOST_VARIANT, NO_TARGET, TOO_LONG, UNWANTED
from jaxsft.errors import UserError


@dataclasses.dataclass
class Windows:
    """What of a cache is used: record, first token, length and number of targets of each example."""

    records: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    cut: int
    dropped: dict[str, int]
    supervised: np.ndarray


def windows(cache: TokenCache, config: DataConfig) -> Windows:
    """Applies `max_length` and the truncation policy.

    Plain text is never cut: it is read in windows that overlap by the one token whose target is in the next, so every
    token but the first is a target exactly once.
    """
    parts = GROUPINGS[config.grouping].parts
    size, starts, lengths = longest(config), cache.starts[:-1], np.diff(cache.starts)
    long = (lengths > size) & ~cache.is_text
    if config.truncation == "error" and long.any():
        bound = f"{config.max_length} / {parts}, of which a row holds {parts}" if parts > 1 else f"{size}"
        raise UserError(
            f"{long.sum()} of {len(lengths)} examples are longer than config.data.max_length {bound} (the longest has "
            f"{lengths.max()} tokens); raise it, or set config.data.truncation to 'right' or 'drop'."
        )
    unwanted = _unwanted(cache, config)
    empty = (cache.supervised == 0) & ~unwanted
    too_long = long & ~empty & ~unwanted & (config.truncation == "drop")
    lost = long & ~empty & ~unwanted & ~too_long & (cache.firsts >= size)
    kept = ~(unwanted | empty | lost | too_long)
    dropped = {UNWANTED: unwanted, NO_TARGET: empty, CUT_TARGET: lost, TOO_LONG: too_long}
    if GROUPINGS[config.grouping].whole:
        short = np.bincount(cache.records) != np.bincount(cache.records[kept], minlength=cache.num_records)
        dropped[LOST_VARIANT] = kept & short[cache.records]
        kept &= ~dropped[LOST_VARIANT]
    use = np.flatnonzero(kept)
    records, firsts, sizes = use, starts[use], np.where(long, size, lengths)[use]
    supervised = np.array(cache.supervised[use])
    for i in np.flatnonzero(long[use]):
        supervised[i] = np.count_nonzero(cache.weights[firsts[i] : firsts[i] + size])
    if (sizes > size).any():
        pieces = -(-(sizes - 1) // (size - 1))
        inside = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        ends = np.repeat(firsts + sizes, pieces)
        records, firsts = np.repeat(records, pieces), np.repeat(firsts, pieces) + inside * (size - 1)
        sizes = np.minimum(size, ends - firsts)
        supervised = np.where(cache.is_text[records], sizes - 1, supervised[np.repeat(np.arange(len(use)), pieces)])
    return Windows(
        records,
        firsts,
        sizes,
        cut=int(long[use].sum()),
        dropped={reason: int(which.sum()) for reason, which in dropped.items() if which.any()},
        supervised=supervised,
    )


def _unwanted(cache: TokenCache, config: DataConfig) -> np.ndarray:
    """bool [examples], which are of a class of weight 0."""
    by_type = config.classes.by == "task_type"
    ids, names = (cache.task_types, cache.task_type_names) if by_type else (cache.sources, cache.source_names)
    return np.isin(ids, [i for i, name in enumerate(names) if config.classes.weight.get(name) == 0])
