"""Pairs of the given answer and the model's own: the data of SPIN (Chen et al. 2024, arXiv:2401.01335).

An iteration prefers the given answer y to y', drawn from the previous iterate p_t(. | x), with p_t as the reference:

    -log sigma(beta [(log p(y|x) - log p_t(y|x)) - (log p(y'|x) - log p_t(y'|x))])

which is the objective "dpo" (`jaxsft.objectives.preference`) in a run that starts from p_t. Prompts are those of
training, template and all. A pair is dropped where y' was cut off before its end, since training would end it there,
and where y' is y, since its gradient is zero. Both are without blanks around them, which would tell them apart.
"""

import dataclasses
from collections.abc import Sequence

from jaxsft.config import SelfPlayConfig
from jaxsft.synthesis.method import Answer, Ask, Made, Outcome, Prompt, dropped, kept
from jaxsft.synthesis.rows import Row, written

NAME = "self_play"


class SelfPlay:
    """See the module."""

    asks = True

    def __init__(self, settings: SelfPlayConfig):
        self.settings = settings

    def __call__(self, rows: Sequence[Row], ask: Ask) -> Made:
        """One pair an answer, those of a row together."""
        count = self.settings.samples
        asked = [row for row in rows if row.answer]
        prompts = [
            Prompt(row.index * count + k, row.prompt, tools=row.conversation.tools)
            for row in asked
            for k in range(count)
        ]
        answers = iter(ask("answers", prompts))
        outcomes: list[Outcome] = []
        for row in rows:
            if not row.answer:
                outcomes.append(dropped("no answer to prefer"))
            else:
                outcomes += [compose(row, next(answers), sample) for sample in range(count)]
        return Made(outcomes, {})


def compose(row: Row, answer: Answer, sample: int = 0) -> Outcome:
    """The pair of the row's answer and the model's."""
    if answer.fault:
        return dropped(answer.fault)
    if answer.text == row.answer.strip():
        return dropped("the same as the given answer")
    chosen = dataclasses.replace(row.conversation.messages[-1], content=row.answer.strip())
    sides = {"chosen": [chosen], "rejected": [answer.message]}
    pair = {name: written(messages) for name, messages in {"prompt": row.prompt, **sides}.items()}
    return kept(row.record(**pair), NAME, row=row.index, sample=sample)
