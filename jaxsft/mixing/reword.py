"""Questions in other words, by a bank: the wording varies, what is asked does not (DELIA, arXiv:2408.10841).

A model's own paraphrases: `jaxsft.synthesis.paraphrase`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jaxsft.config import DataConfig, RewordConfig
from jaxsft.errors import UserError
from jaxsft.files import as_json_lines, write_text
from jaxsft.synthesis.rows import RECORDS, Row, read_rows

ANSWER = "{answer}"
PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


class Wording(NamedTuple):
    """How a question is put, and how its answer is given; see `RewordConfig.bank`."""

    question: str
    answer: str = ANSWER


def reword(config: RewordConfig, folder: epath.PathLike) -> str:
    """Writes the records that `config` names, reworded, into `records.jsonl` of a folder; returns a line on them.

    Raises:
      UserError: for a bank or records that cannot be read or do not fit the pattern, and names that stand for nothing.
    """
    rows, bank = read_rows(DataConfig(sources=[config.records])), read_bank(config.bank)
    if config.per_record > len(bank):
        raise UserError(f"config.per_record is {config.per_record}, but {config.bank} has {len(bank)} wordings.")
    chosen = balanced(len(rows), len(bank), config.per_record, np.random.default_rng(config.seed))
    records = [record(row, bank[i], config) for row, own in zip(rows, chosen) for i in own]
    if jax.process_index() == 0:
        write_text(epath.Path(folder) / RECORDS, as_json_lines(records))
    return f"{epath.Path(folder) / RECORDS}: {len(records)} records of {len(rows)} in {len(bank)} wordings"


def read_bank(path: str) -> list[Wording]:
    """The wordings of a file.

    Raises:
      UserError: if there is none, or it is no list of different wordings.
    """
    file = epath.Path(path)
    if not path or not file.is_file():
        raise UserError(f"config.bank is {path!r}, which is no file; write wordings to one, one a line.")
    text = file.read_text()
    if text.lstrip().startswith("["):
        try:
            bank = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} begins as a JSON list and is none ({error}); mend it.") from error
    else:
        bank = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [one if isinstance(one, list) else [one] for one in bank]
    if not pairs or not all(0 < len(p) < 3 and all(isinstance(t, str) and t.strip() for t in p) for p in pairs):
        raise UserError(f"{path} must hold texts: a JSON list of them, or of pairs of them, or one a line.")
    wordings = [Wording(*pair) for pair in pairs]
    if twice := [one for i, one in enumerate(wordings) if one in wordings[:i]]:
        raise UserError(f"{path} has {twice[0].question!r} twice; leave one out.")
    return wordings


def balanced(rows: int, wordings: int, each: int, rng: np.random.Generator) -> list[list[int]]:
    """Which wordings each row gets: `each` different ones, in all none more than once more often than another."""
    used, chosen = np.zeros(wordings, np.int64), []
    for _ in range(rows):
        least = np.lexsort((rng.random(wordings), used))[:each]
        used[least] += 1
        chosen.append(least.tolist())
    return chosen


def record(row: Row, wording: Wording, config: RewordConfig) -> dict[str, Any]:
    """The record with question and answer in another wording."""
    names = _names(row, config)

    def filled(match: re.Match) -> str:
        if match[1] not in names:
            raise UserError(f"{row.where}: nothing stands for {match[0]} in {config.bank}; known are {_listed(names)}.")
        return names[match[1]]

    question, answer = (PLACEHOLDER.sub(filled, text) for text in wording)
    return {**row.reworded(question, answer if row.answer else None), **config.fields}


def _names(row: Row, config: RewordConfig) -> Mapping[str, str]:
    fields = {name: value for name, value in row.conversation.extras.items() if isinstance(value, str)}
    return {**fields, **_groups(row, config), **config.values, "prompt": row.question, "answer": row.answer}


def _groups(row: Row, config: RewordConfig) -> dict[str, str]:
    if not config.pattern:
        return {}
    try:
        match = re.fullmatch(config.pattern, row.question, re.DOTALL)
    except re.error as error:
        raise UserError(f"config.pattern is no regular expression: {error}.") from error
    if match is None:
        raise UserError(f"{row.where}: the question does not fit config.pattern; change it, or leave the record out.")
    return {name: text or "" for name, text in match.groupdict().items()}


def _listed(names: Sequence[str] | Mapping[str, str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names))
