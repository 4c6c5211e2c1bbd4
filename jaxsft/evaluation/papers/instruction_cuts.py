"""Data for the instruction following score: prompts, whole and cut, and texts that tell answers from continuations.

Of the first turns of conversations (AlShikh et al., arXiv:2307.03692, section 3): an instruction I is kept whole or cut
into a beginning I_p and the rest I_c. A classifier learns from what may stand behind a prompt: the response R is an
answer (1); I_c, and I_c with R behind it, are not (0). Cuts are between words, so no side is ever empty; an instruction
of one word stays whole.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxsft.config import SourceConfig
from jaxsft.data.conversation import parse
from jaxsft.errors import UserError
from jaxsft.evaluation.forms import records

PARTIAL = 0.5  # of the instructions that can be cut


class Turn(NamedTuple):
    """An instruction and the response to it, without blanks around them; and what its record says of itself."""

    instruction: str
    response: str
    source: str = ""
    task_type: str = ""


class Prompt(NamedTuple):
    """A prompt, and whether it is the beginning of an instruction only."""

    text: str
    partial: bool


class Example(NamedTuple):
    """A text that a model might write behind a prompt, and whether it is an answer."""

    text: str
    answer: bool


def first_turns(config: SourceConfig) -> list[Turn]:
    """The first instruction and response of every conversation, system prompts left out; others have none.

    Raises:
      UserError: if no conversation has any.
    """
    found = []
    for record, where, fields, source in records([config]):
        conversation = parse(record, where, fields)
        turns = [m for m in conversation.messages if m.role != "system"][:2]
        texts = [(m.content or "").strip() for m in turns]
        if [m.role for m in turns] == ["user", "assistant"] and all(texts):
            found.append(Turn(*texts, conversation.source or source, conversation.task_type))
    if not found:
        raise UserError(f"{config.path} has no conversation that begins with a user's turn and an answer.")
    return found


def cut(text: str, random: np.random.Generator) -> tuple[str, str] | None:
    """A text in two at one of the gaps between its words, each as likely; None for a single word."""
    gaps = list(re.finditer(r"\s+", text.strip()))
    if not gaps:
        return None
    gap, text = gaps[random.integers(len(gaps))], text.strip()
    return text[: gap.start()], text[gap.end() :]


def prompts(turns: Sequence[Turn], seed: int = 0) -> list[Prompt]:
    """A prompt for each turn, in their order: about half of the instructions whole, half their beginnings."""
    random, found = np.random.default_rng(seed), []
    for turn in turns:
        parts = cut(turn.instruction, random) if random.random() < PARTIAL else None
        found.append(Prompt(parts[0], True) if parts else Prompt(turn.instruction, False))
    return found


def examples(turns: Sequence[Turn], seed: int = 0) -> list[Example]:
    """What classifiers learn from: of each turn R, and, as likely, I_c or I_c with R; only R where there is no I_c."""
    random, found = np.random.default_rng(seed), []
    for turn in turns:
        found.append(Example(turn.response, True))
        if parts := cut(turn.instruction, random):
            rest = parts[1]
            found.append(Example(rest if random.random() < 0.5 else f"{rest}\n{turn.response}", False))
    return found
