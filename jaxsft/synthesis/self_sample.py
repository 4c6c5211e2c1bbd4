"""The model's own answers to questions: DELIA's diverse data (Zeng et al. 2024, arXiv:2408.10841).

In the mode "plain" an answer y is drawn from the model's p(. | q). Trained on, with temperature 1 and nothing cut off,
-log p_theta(y | q) is in expectation the model's entropy plus KL(p || p_theta): an anchor at the start.

In the mode "with_reference", that of the authors, the prompt is q, the given answer, and q again, under a general
system prompt; the record is q and the new answer, and what produced it is left out.

Answers that are empty, cut off before their end, or written before to the same question are dropped; so is every
question or answer with a forbidden text, in whatever case.
"""

from collections import Counter
from collections.abc import Sequence

from jaxsft.config import SelfSampleConfig
from jaxsft.data.conversation import Message
from jaxsft.synthesis.method import Answer, Ask, Made, Outcome, Prompt, dropped, kept
from jaxsft.synthesis.rows import Row, written

NAME = "self_sample"
FORBIDDEN = "a forbidden text in the {}"


class SelfSample:
    """See the module."""

    asks = True

    def __init__(self, settings: SelfSampleConfig):
        self.settings = settings

    def __call__(self, rows: Sequence[Row], ask: Ask) -> Made:
        """One record an answer, its samples together."""
        count = self.settings.samples
        refused = {row.index: reason for row in rows if (reason := self._refusal(row))}
        asked = [row for row in rows if row.index not in refused]
        prompts = [prompt(row, self.settings)._replace(id=row.index * count + k) for row in asked for k in range(count)]
        answers = iter(ask("answers", prompts))
        outcomes: list[Outcome] = []
        seen: set[str] = set()
        overlaps: list[float] = []
        same = 0
        for row in rows:
            if row.index in refused:
                outcomes.append(dropped(refused[row.index]))
                continue
            for sample in range(count):
                answer = next(answers)
                outcome = self._outcome(row, answer, sample, seen)
                outcomes.append(outcome)
                if outcome.record is not None and row.answer:
                    overlaps.append(overlap(answer.text, row.answer))
                    same += answer.text == row.answer.strip()
        figures = {"overlap": sum(overlaps) / len(overlaps), "same_as_given": same} if overlaps else {}
        return Made(outcomes, figures)

    def _refusal(self, row: Row) -> str:
        """Why a record is not asked about, "" where it is."""
        shown = [*row.prompt, *row.conversation.messages[-1:]] if self._shows_answer else row.prompt
        if any(self._is_forbidden(message.content or "") for message in shown):
            return FORBIDDEN.format("record" if self._shows_answer else "question")
        return "no answer to refer to" if self._shows_answer and not row.answer else ""

    def _is_forbidden(self, text: str) -> bool:
        return any(forbidden.lower() in text.lower() for forbidden in self.settings.forbidden)

    @property
    def _shows_answer(self) -> bool:
        return self.settings.mode == "with_reference"

    def _outcome(self, row: Row, answer: Answer, sample: int, seen: set[str]) -> Outcome:
        if answer.fault:
            return dropped(answer.fault)
        if self._is_forbidden(answer.text):
            return dropped(FORBIDDEN.format("answer"))
        key = f"{written(row.prompt)}\0{answer.text}"
        if key in seen:
            return dropped("written before")
        seen.add(key)
        return kept(row.answered(answer.text), NAME, row=row.index, sample=sample, mode=self.settings.mode)


def prompt(row: Row, settings: SelfSampleConfig) -> Prompt:
    """What is asked about a record; see the module."""
    tools = row.conversation.tools
    if settings.mode == "plain":
        return Prompt(row.index, row.prompt, tools=tools)
    has_system = row.prompt[0].role == "system" or not settings.system
    system = [] if has_system else [Message("system", settings.system)]
    again = [Message("assistant", row.answer), row.prompt[-1]]
    return Prompt(row.index, [*system, *row.prompt, *again], tools=tools)


def overlap(text: str, reference: str) -> float:
    """Share of words that two texts have in common, 0 to 1: twice the common ones over all (the F1 of ROUGE-1)."""
    ours, theirs = text.lower().split(), reference.lower().split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / max(len(ours) + len(theirs), 1)
