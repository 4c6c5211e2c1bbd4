"""Records that a judge lets through: a status, a rating from 1 to n, and a reason for each, as the filter of OpenBezoar
(arXiv:2404.12195, section 3) has them.

The judge is a model that is asked, or a file of judgements made elsewhere. A record is kept where its status is a word
of approval (or it has none) and its rating reaches the threshold. What cannot be read is no approval.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxsft.config import JudgeConfig, SourceConfig
from jaxsft.data.conversation import Message
from jaxsft.data.sources import open_source
from jaxsft.errors import UserError
from jaxsft.synthesis.method import TOO_LONG, Answer, Ask, Made, Outcome, Prompt, dropped
from jaxsft.synthesis.rows import Row
from jaxsft.synthesis.wordings import JUDGE

APPROVAL = ("accept", "approve", "pass", "ok", "good", "yes", "correct")  # beginnings of words
UNREAD, NOT_JUDGED = "the judgement cannot be read", "not judged"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a judge said.

    Attributes:
      status: a word, in small letters; "" if it said none.
      rating: from 1 to the scale's end.
      reason: "" if it gave none.
    """

    status: str
    rating: float
    reason: str


class Judge:
    """See the module."""

    def __init__(self, settings: JudgeConfig):
        if settings.threshold > settings.scale:
            raise UserError(
                f"config.judge.threshold is {settings.threshold:g}, which no rating from 1 to {settings.scale} "
                "reaches; lower it."
            )
        self.settings, self.asks = settings, not settings.file

    def __call__(self, rows: Sequence[Row], ask: Ask) -> Made:
        """One outcome a record; the figure `rating` is the mean of those that could be read."""
        asked = [row for row in rows if row.answer]
        if not self.asks:
            found = read_judgements(self.settings.file, self.settings.scale)
        else:
            answers = ask("judgements", [prompt(row, self.settings.scale) for row in asked])
            found = {row.index: _of_answer(answer, self.settings.scale) for row, answer in zip(asked, answers)}
        outcomes = [
            self.decide(row, found.get(row.index, NOT_JUDGED)) if row.answer else dropped("no answer to judge")
            for row in rows
        ]
        ratings = [one.rating for one in found.values() if isinstance(one, Judgement)]
        return Made(outcomes, {"rating": sum(ratings) / len(ratings)} if ratings else {})

    def decide(self, row: Row, judgement: Judgement | str) -> Outcome:
        """Keeps the record, with the judgement, or drops it; a string is why there is no judgement."""
        if isinstance(judgement, str):
            return dropped(judgement)
        if judgement.status and not judgement.status.startswith(APPROVAL):
            return dropped("rejected")
        if judgement.rating < self.settings.threshold:
            return dropped(f"rated below {self.settings.threshold:g}")
        return Outcome({**row.unchanged(), "judgement": dataclasses.asdict(judgement)}, "kept")


def prompt(row: Row, scale: int) -> Prompt:
    """What the judge is asked about a record: its whole prompt, roles named where it is more than a question."""
    if len(row.prompt) == 1:
        request = row.question
    else:
        request = "\n\n".join(f"{message.role}: {message.content}" for message in row.prompt)
    text = JUDGE.replace("{scale}", str(scale))
    head, _, rest = text.partition("{request}")
    between, _, tail = rest.partition("{answer}")
    return Prompt(row.index, [Message("user", head + request + between + row.answer + tail)])


def _of_answer(answer: Answer, scale: int) -> Judgement | str:
    return (parse(answer.text, scale) or UNREAD) if answer.stopped_by else TOO_LONG


def parse(text: str, scale: int) -> Judgement | None:
    """The judgement in a text: a JSON object, or lines "Rating: 4", "rating = 4/5", "**Rating**: 4 out of 5".

    Returns:
      None without a rating from 1 to `scale`, or where a rating is out of another number.
    """
    found = _json_fields(text) or _line_fields(text)
    return _judgement(found, scale)


def _json_fields(text: str) -> dict[str, Any]:
    match = re.search(r"\{.*?\}", text, re.DOTALL)
    try:
        held = json.loads(match[0]) if match else {}
    except json.JSONDecodeError:
        return {}
    return {str(name).lower(): value for name, value in held.items()} if isinstance(held, dict) else {}


def _line_fields(text: str) -> dict[str, Any]:
    mark = r"[\s*_#\"'`-]*"
    lines = re.findall(rf"^{mark}(status|rating|reason){mark}[:=]{mark}(\S.*?){mark}$", text, re.I | re.M)
    found: dict[str, Any] = {}
    for name, value in lines:
        found.setdefault(name.lower(), value)
    return found


def _judgement(found: Mapping[str, Any], scale: int) -> Judgement | None:
    rating = re.fullmatch(r"(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*(\d+))?\W*", str(found.get("rating", "")).strip())
    if rating is None or (rating[2] and int(rating[2]) != scale) or not 1 <= float(rating[1]) <= scale:
        return None
    said = re.findall(r"[a-z]+", str(found.get("status") or "").lower())
    status = " ".join(said[:2]) if said[:1] == ["not"] else (said or [""])[0]
    return Judgement(status, float(rating[1]), str(found.get("reason") or ""))


def read_judgements(path: str, scale: int) -> dict[int, Judgement | str]:
    """Row -> judgement, of records with `row`, `rating`, and perhaps `status` and `reason`.

    Raises:
      UserError: for a record without a row, or two of one row.
    """
    source = open_source(SourceConfig(path=path))
    found: dict[int, Judgement | str] = {}
    for record, where in source.records(0, len(source)):
        row = record.get("row") if isinstance(record, Mapping) else None
        if type(row) is not int or row in found:
            wrong = "the row was judged before" if row in found else "no whole number is its `row`"
            raise UserError(f"{where}: {wrong}; a judgement has `row`, the place of its record counted from 0.")
        found[row] = _judgement(record, scale) or UNREAD
    return found
