"""What a method of synthesis is: what it asks for each record, and what it makes of the answers."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from jaxsft.data.conversation import Message
from jaxsft.synthesis.rows import Row

TOO_LONG = "the prompt is longer than the context"


class Prompt(NamedTuple):
    """What the model is asked.

    Attributes:
      id: with the seed, decides what is drawn.
      messages: of which the last is not the assistant's.
      prefill: what the answer begins with, as part of the prompt and not of the answer.
      tools: descriptions of functions, where the template writes them.
    """

    id: int
    messages: list[Message]
    prefill: str = ""
    tools: list[Any] | None = None


class Answer(NamedTuple):
    """What the model wrote.

    Attributes:
      text: without what ended it, and without blanks around it.
      stopped_by: see `jaxsft.decoding.engine.Sampled`; "" where the prompt left no room to answer.
    """

    text: str
    stopped_by: str

    @property
    def message(self) -> Message:
        """As a turn."""
        return Message("assistant", self.text)

    @property
    def fault(self) -> str:
        """Why no method keeps it, "" where nothing is wrong."""
        if not self.stopped_by:
            return TOO_LONG
        if self.stopped_by in ("length", "context"):
            return "cut off before its end"
        return "" if self.text else "empty"


class Outcome(NamedTuple):
    """What became of a record or an answer.

    Attributes:
      record: what is written, or None.
      fate: "kept", "fell back" (the record stands as it was given) or "dropped".
      reason: why it was not kept; "" where it was.
    """

    record: dict[str, Any] | None
    fate: str
    reason: str = ""


class Made(NamedTuple):
    """What a method made.

    Attributes:
      outcomes: in the order of the records.
      figures: what else the report says: name -> number.
    """

    outcomes: list[Outcome]
    figures: dict[str, float]


Ask = Callable[[str, Sequence[Prompt]], list[Answer]]
"""Asks the model: (a name for the pass, the prompts) -> an answer to each. What is answered is kept under that name, so
that a method that is run again is given the same answers."""


class Method(Protocol):
    """A method with its settings.

    Attributes:
      asks: whether a model is asked at all.
    """

    asks: bool

    def __call__(self, rows: Sequence[Row], ask: Ask) -> Made:
        """Asks for what it needs, as often as it needs, and makes records of the answers."""


def kept(record: dict[str, Any], by: str, **details: Any) -> Outcome:
    """A record that the model wrote; `synthesis` in it says by which method and from what."""
    return Outcome({**record, "synthesis": {"method": by, **details}}, "kept")


def fell_back(record: dict[str, Any], by: str, reason: str, **details: Any) -> Outcome:
    """A record as it was given, for a reason, which `synthesis` in it says."""
    return Outcome({**record, "synthesis": {"method": by, "fell_back": reason, **details}}, "fell back", reason)


def dropped(reason: str) -> Outcome:
    """Nothing, for a reason."""
    return Outcome(None, "dropped", reason)


def counts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How many had which fate, and why: {"kept": n, "fell back": {reason: n}, "dropped": {reason: n}}."""
    found: dict[str, Any] = {"kept": sum(outcome.fate == "kept" for outcome in outcomes)}
    for fate in ("fell back", "dropped"):
        reasons = collections.Counter(outcome.reason for outcome in outcomes if outcome.fate == fate)
        found[fate] = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    return found
