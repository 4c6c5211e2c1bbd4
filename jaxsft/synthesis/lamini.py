"""New instructions from examples, and answers to them: LaMini's way (Wu et al. 2023, arXiv:2304.14402), as OpenBezoar
takes it (arXiv:2404.12195, section 3).

The teacher sees a few instructions drawn from the records and writes a numbered list of new ones; then it answers each.
Of the records only the questions are read. A list that is cut off loses its last line. Dropped are instructions that
were given or written before, case and blanks aside, and those whose answer is empty or cut off.
"""

import re
from collections.abc import Sequence

import numpy as np

from jaxsft.config import LaMiniConfig
from jaxsft.data.conversation import Message
from jaxsft.errors import UserError
from jaxsft.synthesis.method import Answer, Ask, Made, Outcome, Prompt, dropped, kept
from jaxsft.synthesis.rows import Row, written
from jaxsft.synthesis.wordings import NEW_INSTRUCTIONS

NAME = "lamini"
ITEM = re.compile(r"^[ \t]*(?:\d+[.):]|[-*\N{BULLET}](?=[ \t]))[ \t]*(\S.*?)\s*$", re.MULTILINE)


class LaMini:
    """See the module."""

    asks = True

    def __init__(self, settings: LaMiniConfig, seed: int):
        self.settings, self.seed = settings, seed

    def __call__(self, rows: Sequence[Row], ask: Ask) -> Made:
        """One outcome for each instruction that the teacher wrote, and one for each list without any."""
        settings = self.settings
        if len(rows) < settings.examples:
            raise UserError(
                f"config.lamini.examples is {settings.examples}, but there are {len(rows)} records; lower it, or name "
                "more."
            )
        shown = [self._examples(len(rows), group) for group in range(settings.lists)]
        prompts = [_prompt(group, [rows[i] for i in own], settings.wanted) for group, own in enumerate(shown)]
        outcomes: list[Outcome | None] = []
        new: list[tuple[int, int, str]] = []  # place among the outcomes, id, instruction
        seen = {normal(row.question): "one of the given" for row in rows}
        for group, answer in enumerate(ask("instructions", prompts)):
            found = instructions(answer)[: settings.wanted]
            if not found:
                outcomes.append(dropped("no list of instructions"))
            for k, text in enumerate(found):
                if reason := seen.get(normal(text)):
                    outcomes.append(dropped(reason))
                    continue
                seen[normal(text)] = "written before"
                new.append((len(outcomes), group * settings.wanted + k, text))
                outcomes.append(None)
        answers = ask("answers", [Prompt(id_, [Message("user", text)]) for _, id_, text in new])
        for (place, id_, text), answer in zip(new, answers):
            group = id_ // settings.wanted
            outcomes[place] = compose(text, answer, list=group, examples=[rows[i].index for i in shown[group]])
        return Made([outcome for outcome in outcomes if outcome is not None], {})

    def _examples(self, count: int, group: int) -> list[int]:
        random = np.random.default_rng((self.seed, group))
        return random.choice(count, self.settings.examples, replace=False).tolist()


def _prompt(group: int, examples: Sequence[Row], wanted: int) -> Prompt:
    listed = "\n".join(f"{n}. {' '.join(row.question.split())}" for n, row in enumerate(examples, 1))
    return Prompt(group, [Message("user", NEW_INSTRUCTIONS.format(examples=listed, wanted=wanted))])


def instructions(answer: Answer) -> list[str]:
    """The items of a numbered or bulleted list, without the last where the answer was cut off."""
    lines = answer.text.splitlines()
    whole = lines[:-1] if answer.stopped_by in ("length", "context") else lines
    return ITEM.findall("\n".join(whole))


def compose(instruction: str, answer: Answer, **details: object) -> Outcome:
    """The record of an instruction and its answer."""
    if answer.fault:
        return dropped(answer.fault)
    messages = written([Message("user", instruction), answer.message])
    return kept({"messages": messages, "source": NAME}, NAME, **details)


def normal(text: str) -> str:
    """What two instructions are compared by."""
    return " ".join(text.lower().split())
