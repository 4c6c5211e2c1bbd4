"""Instructions that the model puts in other words: DELIA's diversification, by the model itself (arXiv:2408.10841).

The authors' prompts are not published; the wording here is ours. A new wording is dropped if it is empty or cut off, is
the old one or one written before, or lacks a text that it has to keep. The answer of a record stays.
"""

import re
from collections.abc import Sequence

from jaxsft.config import ParaphraseConfig
from jaxsft.data.conversation import Message
from jaxsft.errors import UserError
from jaxsft.synthesis.method import Answer, Ask, Made, Outcome, Prompt, dropped, kept
from jaxsft.synthesis.rows import Row

NAME = "paraphrase"
WISH = (
    "Put the instruction below in other words. It must ask for the same thing, neither more nor less.{keep} Write the "
    "new instruction, and nothing else.\n\n{text}"
)
KEEP = " Keep {texts} as it stands."


class Paraphrase:
    """See the module."""

    asks = True

    def __init__(self, settings: ParaphraseConfig):
        """Keeps them.

        Raises:
          UserError: for a pattern that is none, or has no group `text`.
        """
        self.settings = settings
        try:
            self._pattern = re.compile(settings.pattern or "(?P<text>.*)", re.DOTALL)
        except re.error as error:
            raise UserError(f"config.paraphrase.pattern is no regular expression: {error}.") from error
        if "text" not in self._pattern.groupindex:
            raise UserError("config.paraphrase.pattern has no group (?P<text>...), which says what is put otherwise.")

    def __call__(self, rows: Sequence[Row], ask: Ask) -> Made:
        """One record a new wording, those of a record together."""
        count = self.settings.samples
        fitting = [self._pattern.fullmatch(row.question) for row in rows]
        found = [match if match and match["text"] else None for match in fitting]
        prompts = [
            Prompt(row.index * count + k, [Message("user", self.wish(match["text"]))])
            for row, match in zip(rows, found)
            if match
            for k in range(count)
        ]
        answers = iter(ask("answers", prompts))
        outcomes = []
        for row, match in zip(rows, found):
            if match is None:
                outcomes.append(dropped("the question does not fit the pattern"))
                continue
            seen = {_form(match["text"])}
            outcomes += [self._outcome(row, match, next(answers), k, seen) for k in range(count)]
        return Made(outcomes, {})

    def wish(self, text: str) -> str:
        """What the model is asked."""
        names = " and ".join(repr(one) for one in self.settings.preserve if one in text)
        return WISH.format(keep=KEEP.format(texts=names) if names else "", text=text.strip())

    def _outcome(self, row: Row, match: re.Match, answer: Answer, sample: int, seen: set[str]) -> Outcome:
        old, new = match["text"], answer.text
        if answer.fault:
            return dropped(answer.fault)
        if missing := [text for text in self.settings.preserve if text in old and text not in new]:
            return dropped(f"{missing[0]!r} is lost")
        if _form(new) in seen:
            return dropped("the wording is not new")
        seen.add(_form(new))
        question = row.question[: match.start("text")] + new + row.question[match.end("text") :]
        return kept(row.reworded(question), NAME, row=row.index, sample=sample)


def _form(text: str) -> str:
    """A text by which wordings are compared: its words, in small letters."""
    return " ".join(re.findall(r"\w+", text.lower()))
