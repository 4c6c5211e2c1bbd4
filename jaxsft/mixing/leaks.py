"""Whether records that are to be unrelated to a task hold any of it.

Unrelated data keeps a model's other behaviour where it is; rows of the task in it, or its new token, would train what
they are to buffer. Words are compared in small letters and without punctuation. Chinese and Japanese, which have no
blanks, are compared character by character; other scripts without blanks, such as Thai, in runs between blanks.
"""

import collections
import re
from collections.abc import Iterable, Sequence

from jaxsft.config import LeakConfig
from jaxsft.errors import UserError
from jaxsft.synthesis.rows import Row

UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
TEXT, RUN, WHOLE = "the text {!r}", "{} consecutive words of the task", "a question of the task"


class Leaks:
    """The task's questions, and what of them another record may not have.

    Args:
      config: see `LeakConfig`.
      task: records of the task.
    """

    def __init__(self, config: LeakConfig, task: Iterable[Row]):
        self._config = config
        self._runs: set[tuple[str, ...]] = set()
        self._whole: set[tuple[str, ...]] = set()
        for row in task:
            found = words(question(row))
            self._whole.add(found)
            self._runs.update(runs(found, config.words))

    def of(self, row: Row) -> str:
        """What a record has of the task, "" for nothing."""
        text = "\n".join(message.content or "" for message in row.conversation.messages).lower()
        for forbidden in self._config.forbidden:
            if forbidden.lower() in text:
                return TEXT.format(forbidden)
        found = words(question(row))
        if found in self._whole:
            return WHOLE
        return RUN.format(self._config.words) if not self._runs.isdisjoint(runs(found, self._config.words)) else ""

    def left(self, rows: Sequence[Row], where: str) -> tuple[list[Row], dict[str, int]]:
        """The records without leaks, and how many had which.

        Raises:
          UserError: for any leak, with all counts and the first one's place, unless they are to be dropped; and where
            none is left.
        """
        found = [self.of(row) for row in rows]
        counts = dict(collections.Counter(leak for leak in found if leak))
        if counts and self._config.on_leak == "error":
            first = next(i for i, leak in enumerate(found) if leak)
            told = ", ".join(f"{count} with {leak}" for leak, count in counts.items())
            raise UserError(
                f"{sum(counts.values())} of {len(rows)} records of {where} are not unrelated to the task: {told}; the "
                f"first is {rows[first].where}. Leave them out (config.leaks.on_leak 'drop'), or change what is "
                "compared (config.leaks)."
            )
        left = [row for row, leak in zip(rows, found) if not leak]
        if not left:
            raise UserError(f"no record of {where} is unrelated to the task: {counts}; choose others.")
        return left, counts


def question(row: Row) -> str:
    """All that is asked, the system prompt left out."""
    return "\n".join(message.content or "" for message in row.prompt if message.role != "system")


def words(text: str) -> tuple[str, ...]:
    """The words of a text, in small letters; of Chinese and Japanese the characters."""
    return tuple(WORD.findall(text.lower()))


def runs(found: tuple[str, ...], length: int) -> set[tuple[str, ...]]:
    """All runs of so many consecutive words."""
    return {found[i : i + length] for i in range(len(found) - length + 1)} if length else set()
