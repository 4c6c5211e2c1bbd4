"""SDFT, self-distillation fine-tuning (Yang et al. 2024, arXiv:2402.13669): answers in the model's own words.

The model that is to be fine-tuned writes every answer anew, with the given one before its eyes; where the new answer
passes a test (`accept.py`) it replaces the given one, else the record stays as it was, so that rows keep number and
order. Trained on with the ordinary template and the ordinary loss, -log p_theta(y' | x), such answers are closer to
what the model would have said.

Rewritten is the last answer of a record; one that is empty, or cut off before its end, is not taken.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxsft.config import SDFTConfig
from jaxsft.data.conversation import Message
from jaxsft.synthesis.accept import TESTS, Accept
from jaxsft.synthesis.method import Answer, Ask, Made, Outcome, Prompt, fell_back, kept
from jaxsft.synthesis.rows import Row

NAME = "sdft"


class Template(NamedTuple):
    """How the given answer is shown.

    Attributes:
      system: system prompt; "" is none.
      user: the message, of which {instruction} and {response} are replaced by question and answer; "" asks the question
        a second time, behind the answer as an earlier turn.
      prefill: what the new answer begins with; part of the prompt alone.
    """

    system: str
    user: str
    prefill: str = ""


FIELDS = "### Instruction:\n{instruction}\n\n### Reference Answer:\n{response}\n\n### Response:"
# The wordings are ours, the structure is the authors'.
TEMPLATES = {
    "refer": Template(
        "You see a task and a reference answer to it. Refer to the reference, then write your own response.",
        FIELDS,
    ),
    "guide": Template(
        "You see a task and a reference answer to it. Let the reference guide you, and write your own version of it.",
        FIELDS,
    ),
    "math": Template(
        "You are an expert in mathematics who explains every step of a solution.",
        "{instruction}\n\n{response}",
        "Let us work it out step by step.",
    ),
    "earlier_answer": Template("", ""),
}


class SDFT:
    """See the module."""

    asks = True

    def __init__(self, settings: SDFTConfig):
        self.template, self.accept = TEMPLATES[settings.template], TESTS[settings.accept]

    def __call__(self, rows: Sequence[Row], ask: Ask) -> Made:
        """One record a row."""
        asked = [row for row in rows if row.answer]
        answers = dict(zip([row.index for row in asked], ask("answers", [prompt(row, self.template) for row in asked])))
        outcomes = [compose(row, answers.get(row.index), self.accept) for row in rows]
        new = [answers[row.index].text == row.answer.strip() for row, o in zip(rows, outcomes) if o.fate == "kept"]
        return Made(outcomes, {"same_as_given": sum(new)})


def prompt(row: Row, template: Template) -> Prompt:
    """What is asked about a row. A system prompt of its own stands before the template's, earlier turns before the
    question."""
    *before, last = row.prompt
    if not template.user:
        messages = [*row.prompt, Message("assistant", row.answer), last]
    else:
        head, _, tail = template.user.partition("{response}")
        head = head.replace("{instruction}", last.content or "")
        shown = head + row.answer + tail
        own = before.pop(0).content if before and before[0].role == "system" else ""
        system = "\n\n".join(filter(None, [own, template.system]))
        messages = [Message("system", system), *before, Message(last.role, shown)]
    return Prompt(row.index, messages, template.prefill, row.conversation.tools)


def compose(row: Row, answer: Answer | None, accept: Accept) -> Outcome:
    """The record with the new answer, or as it was given; without an answer there was none to rewrite."""
    reason = "no answer to rewrite" if answer is None else answer.fault or accept(answer.text, row.answer)
    if answer is None or reason:
        return fell_back(row.unchanged(), NAME, reason, row=row.index)
    return kept(row.answered(answer.text), NAME, row=row.index)
