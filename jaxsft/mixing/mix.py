"""A task's records among unrelated ones, in exact numbers (DELIA, Zeng et al. 2024, arXiv:2408.10841).

With N_t records of the task, a cache C of unrelated ones and the ratio rho:

    N_d = min(floor(rho N_t), |C|),   D = shuffle(the first N_d of shuffle(C), and all N_t of the task)

so the task is a share 1 / (1 + rho) of what is trained on, each record counting once.
"""

import json
import math
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxsft.config import DataConfig, MixConfig, SourceConfig
from jaxsft.errors import UserError
from jaxsft.files import as_json_lines, write_json, write_text
from jaxsft.mixing.leaks import Leaks
from jaxsft.synthesis.rows import RECORDS, Row, read_rows, written

REPORT = "mix.json"


def mix(config: MixConfig, folder: epath.PathLike) -> str:
    """Writes the mixture that `config` names into `records.jsonl` of a folder, and `mix.json`, written last, on it.

    A record says in its field `mixed` whether it is of the "task" or "diverse".

    Returns:
      A line on it, with a warning where the cache is too small for the ratio.

    Raises:
      UserError: for records that cannot be read, and unrelated ones that are not.
    """
    if not math.isfinite(config.ratio):
        raise UserError(f"config.ratio is {config.ratio}; give a number, 0 for the task alone.")
    task = _read(config.task)
    cache, counts, duplicates = [], {}, 0
    if config.ratio > 0:
        if not config.diverse.path:
            raise UserError("config.diverse.path is empty; name unrelated records, or set config.ratio to 0.")
        others = [row for source in config.leaks.against for row in _read(source)]
        rows = _read(config.diverse)
        unique = list({_said(row): row for row in reversed(rows)}.values())[::-1]
        duplicates = len(rows) - len(unique)
        cache, counts = Leaks(config.leaks, [*task, *others]).left(unique, config.diverse.path)
    wanted = count(config.ratio, len(task))
    held = min(wanted, len(cache))
    own, other = order(len(task), len(cache), held, config.repeat, config.seed)
    records = [_marked(task[i], "task") if i >= 0 else _marked(cache[j], "diverse") for i, j in zip(own, other)]
    figures = {
        "task": len(task),
        "wanted": wanted,
        "diverse": 0 if config.repeat else held,
        "repeated": held if config.repeat else 0,
        "cache": len(cache),
        "ratio": held / len(task),
        "duplicates": duplicates,
        "leaks": counts,
        "seed": config.seed,
    }
    folder = epath.Path(folder)
    if jax.process_index() == 0:
        write_text(folder / RECORDS, as_json_lines(records))
        write_json(folder / REPORT, figures)
    return f"{folder / RECORDS}: {told(config, figures)}"


def count(ratio: float, rows: int) -> int:
    """floor(rho N_t), of rho as it is written: 0.29 * 100 is 29."""
    return math.floor(Fraction(str(ratio)) * rows)


def order(task: int, cache: int, held: int, repeat: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which records stand where.

    Args:
      task, cache: how many records there are of each kind.
      held: how many unrelated ones are taken.
      repeat: take records of the task in their place, none more than once more often than another.
      seed: of the draws.

    Returns:
      int64 [task + held] twice: places in the task, -1 where an unrelated record stands; and places in the cache.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(cache)[:held]
    if repeat:
        again = np.concatenate([rng.permutation(task) for _ in range(-(-held // task))] or [np.zeros(0, np.int64)])
        own, other = np.concatenate([np.arange(task), again[:held]]), np.full(task + held, -1)
    else:
        own = np.concatenate([np.arange(task), np.full(held, -1)])
        other = np.concatenate([np.full(task, -1), chosen])
    shuffled = rng.permutation(task + held)
    return own[shuffled], other[shuffled]


def told(config: MixConfig, figures: dict[str, Any]) -> str:
    """The figures in a line."""
    parts = [f"{figures['task']} records of the task"]
    parts += [f"{figures['diverse']} unrelated ones"] if not config.repeat else []
    parts += [f"{figures['repeated']} of them again"] if config.repeat else []
    parts += [f"{figures['duplicates']} duplicates left out"] if figures["duplicates"] else []
    parts += [f"{number} left out with {leak}" for leak, number in figures["leaks"].items()]
    if figures["cache"] < figures["wanted"]:
        parts.append(
            f"warning: {figures['wanted']} unrelated ones were wanted, so the ratio is {figures['ratio']:.4g} and not "
            f"{config.ratio:g}"
        )
    return ", ".join(parts)


def _read(source: SourceConfig) -> list[Row]:
    return read_rows(DataConfig(sources=[source]))


def _said(row: Row) -> str:
    """What two records are compared by: not where they are from, which `synthesis` and other fields say."""
    return json.dumps([written(row.conversation.messages), row.conversation.tools])


def _marked(row: Row, kind: str) -> dict[str, Any]:
    return {**row.unchanged(), "mixed": kind}
