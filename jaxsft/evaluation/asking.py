"""How a question is put: bare or behind worked examples, as turns of a chat template or as plain text."""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxsft.config import PromptConfig, ShotsConfig, SourceConfig, TaskConfig
from jaxsft.data.conversation import Message
from jaxsft.data.templates import NO_TEMPLATE
from jaxsft.errors import UserError

PLACE = re.compile(r"\{(\w+)\}")


class Shot(NamedTuple):
    """A question that can stand as an example before others.

    Attributes:
      question: as its record has it, by which it is told from the others.
      asked: as it is put.
      answer: what is said to it.
      source: the part of the data that it belongs to.
    """

    question: str
    asked: str
    answer: str
    source: str


class Asker:
    """Puts the questions of a task.

    Args:
      config: the task, for `prompt` and the template.
      read: `fn(sources) -> shots`, the questions of some sources as examples.

    Raises:
      UserError: for a placeholder that stands for nothing.
    """

    def __init__(self, config: TaskConfig, read: Callable[[list[SourceConfig]], list[Shot]]):
        self._prompt, shots = config.prompt, config.prompt.shots
        self._turns = shots.turns and config.data.template != NO_TEMPLATE
        check_places(config.prompt)
        sources = [SourceConfig(shots.path, rows=shots.rows, fields=shots.fields)] if shots.path else None
        self._pool = Pool(read(sources or config.data.all_sources()), shots) if shots.count else None

    def put(self, shot: Shot) -> list[Message]:
        """The messages that ask a question, the last of which is the user's; its answer is not looked at."""
        examples = self._pool.before(shot) if self._pool else []
        preamble = fill(self._prompt.preamble, {"subject": in_words(shot.source)})
        if self._turns:
            asked = [example.asked for example in examples] + [shot.asked]
            users = [Message("user", preamble + asked[0]), *(Message("user", text) for text in asked[1:])]
            answers = [Message("assistant", example.answer) for example in examples]
            return [message for pair in zip(users, answers) for message in pair] + [users[-1]]
        texts = [f"{example.asked.rstrip()} {example.answer.strip()}" for example in examples]
        return [Message("user", preamble + self._prompt.shots.separator.join([*texts, shot.asked]))]


class Pool:
    """Examples, and which of them stand before a question."""

    def __init__(self, shots: Sequence[Shot], config: ShotsConfig):
        """Keeps them, in the order of their files."""
        self._shots, self._config = shots, config
        self._words = np.array([_words(shot) for shot in shots])
        self._sources = np.array([shot.source for shot in shots])

    def before(self, shot: Shot) -> list[Shot]:
        """The examples that stand before a question, in their order; never the question itself.

        Raises:
          UserError: if there are too few others.
        """
        config = self._config
        others = self._words != _words(shot)
        if config.same_source:
            others &= self._sources == shot.source
        places = np.flatnonzero(others)
        if len(places) < config.count:
            of = f" of the source {shot.source!r}" if config.same_source else ""
            raise UserError(
                f"config.prompt.shots.count is {config.count}, but there are {len(places)} other questions{of} to "
                f"stand before {shot.question[:60]!r}; lower it, or name a file with more by config.prompt.shots.path."
            )
        if config.draw == "random":
            random = np.random.default_rng([config.seed, *hashlib.sha256(shot.question.encode()).digest()])
            places = random.choice(places, config.count, replace=False)
        return [self._shots[i] for i in places[: config.count]]


def fill(text: str, values: dict[str, str]) -> str:
    """The text with each "{name}" replaced by what it stands for; braces inside a value stay as they are."""
    return PLACE.sub(lambda match: values.get(match[1], match[0]), text)


def in_words(source: str) -> str:
    """ "abstract_algebra" as "abstract algebra"."""
    return source.replace("_", " ")


def check_places(config: PromptConfig) -> None:
    """Refuses what would reach the model unfilled, or would not ask the question.

    Raises:
      UserError: naming the field and the placeholder.
    """
    for name, text, known in (
        ("question", config.question, ("question", "choices", "subject")),
        ("preamble", config.preamble, ("subject",)),
    ):
        if unknown := [place for place in PLACE.findall(text) if place not in known]:
            raise UserError(
                f"config.prompt.{name} holds '{{{unknown[0]}}}', which stands for nothing; known are "
                f"{', '.join(f'{{{place}}}' for place in known)}."
            )
    if "{question}" not in config.question:
        raise UserError("config.prompt.question has no '{question}', so the question itself would not be asked.")


def _words(shot: Shot) -> int:
    """A number for a question's words, the same however blanks and case set them."""
    return int.from_bytes(hashlib.sha256(" ".join(shot.question.lower().split()).encode()).digest()[:7], "big")
