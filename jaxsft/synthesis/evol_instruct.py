"""Instructions made harder in rounds: Evol-Instruct (Xu et al. 2023, arXiv:2304.12244), as OpenBezoar takes it
(arXiv:2404.12195, section 3).

In every round each instruction of the pool, at first those of the records, is changed by an operator drawn at random
(`wordings.OPERATORS`) and answered. What is eliminated (their section 3.2) leaves the older instruction in the pool, to
be changed otherwise in the next round:

1. the teacher says that the new instruction asks for the same as the old one (or it is the same text);
2. the answer is an excuse: it has "sorry", and fewer than 80 words;
3. the answer has nothing but punctuation and stop words;
4. the new instruction repeats the wording of the task.

So are answers that are empty or cut off. Records are the new instructions with their answers, round by round.
"""

import re
from collections.abc import Sequence

import numpy as np

from jaxsft.config import EvolInstructConfig
from jaxsft.data.conversation import Message
from jaxsft.synthesis.lamini import normal
from jaxsft.synthesis.method import Answer, Ask, Made, Outcome, Prompt, dropped, kept
from jaxsft.synthesis.rows import Row, written
from jaxsft.synthesis.wordings import MARKERS, OPERATORS, SAME

NAME = "evol_instruct"
EXCUSE_WORDS = 80
GAINED_NOTHING = "asks for the same as before"
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by for from had has have he her his i if in into is it its no not of on or our she "
        "so such that the their them then there these they this to us was we were will with you your",
    )
)


class EvolInstruct:
    """See the module."""

    asks = True

    def __init__(self, settings: EvolInstructConfig, seed: int):
        self.settings, self.seed = settings, seed

    def __call__(self, rows: Sequence[Row], ask: Ask) -> Made:
        """One outcome a record and round."""
        pool = [row.question for row in rows]
        outcomes: list[Outcome] = []
        for turn in range(1, self.settings.rounds + 1):
            ids = [turn * len(rows) + place for place in range(len(rows))]
            operators = [self._operator(id_) for id_ in ids]
            told = [OPERATORS[name].format(instruction=text) for name, text in zip(operators, pool)]
            new = _ask(ask, f"evolved_{turn}", ids, told)
            reasons = [eliminated(old, answer) for old, answer in zip(pool, new)]
            if self.settings.compare:
                left = [i for i, reason in enumerate(reasons) if not reason]
                told = [SAME.format(first=pool[i], second=new[i].text) for i in left]
                for i, answer in zip(left, _ask(ask, f"compared_{turn}", [ids[i] for i in left], told)):
                    reasons[i] = same(answer)
            left = [i for i, reason in enumerate(reasons) if not reason]
            answers = dict(zip(left, _ask(ask, f"answers_{turn}", [ids[i] for i in left], [new[i].text for i in left])))
            for i, answer in answers.items():
                reasons[i] = useless(answer)
            for place, reason in enumerate(reasons):
                if reason:
                    outcomes.append(dropped(reason))
                    continue
                pool[place] = new[place].text
                messages = written([Message("user", pool[place]), answers[place].message])
                details = {"row": rows[place].index, "round": turn, "operator": operators[place]}
                outcomes.append(kept({"messages": messages, "source": NAME}, NAME, **details))
        return Made(outcomes, {})

    def _operator(self, id_: int) -> str:
        names = list(OPERATORS)
        return names[np.random.default_rng((self.seed, id_)).integers(len(names))]


def _ask(ask: Ask, name: str, ids: Sequence[int], texts: Sequence[str]) -> list[Answer]:
    return ask(name, [Prompt(id_, [Message("user", text)]) for id_, text in zip(ids, texts)])


def eliminated(old: str, new: Answer) -> str:
    """Why a new instruction is, by itself and beside the old one; "" where it is not."""
    if new.fault:
        return f"the new instruction: {new.fault}"
    if any(marker in new.text.lower() for marker in MARKERS):
        return "repeats the wording of the task"
    return GAINED_NOTHING if normal(new.text) == normal(old) else ""


def same(verdict: Answer) -> str:
    """The reason for elimination in the teacher's verdict on two instructions, "" unless it begins with "equal"."""
    return GAINED_NOTHING if re.match(r"\W*equal\b", verdict.text.lower()) else ""


def useless(answer: Answer) -> str:
    """Why an answer eliminates its instruction, "" where it does not."""
    if answer.fault:
        return f"the answer: {answer.fault}"
    words = re.findall(r"\w+", answer.text.lower())
    if "sorry" in words and len(words) < EXCUSE_WORDS:
        return "the answer is an excuse"
    return "" if any(word not in STOP_WORDS for word in words) else "the answer says nothing"
