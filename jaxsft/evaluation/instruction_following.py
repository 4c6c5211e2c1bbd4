"""The instruction following score: how often a model answers, instead of continuing the prompt.

IFS (AlShikh et al., arXiv:2307.03692) is the share of responses that a classifier calls answer-like, over prompts of
which about half are whole instructions and half the beginnings of instructions. A base model continues the latter; a
model that has learnt to be asked answers both. The classifier sees the response alone.
"""

import math
from collections.abc import Callable, Sequence

Classify = Callable[[Sequence[str]], Sequence[bool]]

LEVEL, RISE, LAST = 0.9, 0.01, 3


def ifs(responses: Sequence[str], is_partial: Sequence[bool], classify: Classify) -> dict[str, float]:
    """The score over all responses, over those to partial and over those to full instructions.

    Args:
      responses: the model's.
      is_partial: whether each is to a part of an instruction.
      classify: whether each of some responses is answer-like.

    Returns:
      `ifs`, `ifs_partial` and `ifs_full`; nan where there is no such prompt.
    """
    answers = [bool(answer) for answer in classify(responses)]
    if not len(answers) == len(responses) == len(is_partial):
        raise ValueError(f"{len(responses)} responses, {len(is_partial)} prompts and {len(answers)} verdicts")
    share = lambda kept: sum(kept) / len(kept) if kept else math.nan
    return {
        "ifs": share(answers),
        "ifs_partial": share([answer for answer, partial in zip(answers, is_partial) if partial]),
        "ifs_full": share([answer for answer, partial in zip(answers, is_partial) if not partial]),
    }


def looks_like_an_answer(responses: Sequence[str]) -> list[bool]:
    """A rule of thumb for smoke tests, and no classifier: something is said that begins with a capital or a digit, not
    in the middle of a sentence, and asks nothing back."""
    return [bool(text := response.strip()) and (text[0].isupper() or text[0].isdigit()) and "?" not in text
            for response in responses]  # fmt: skip


def first_stop(
    scores: Sequence[tuple[int, float]], level: float = LEVEL, rise: float = RISE, last: int = LAST
) -> int | None:
    """The step at which a run may stop, since the format is learnt and more training moves only other things.

    Our reading of the paper's early stopping, which it does not spell out: the first evaluation of a score of `level`
    or more that is less than `rise` above the first of the last `last` evaluations, itself included.

    Args:
      scores: (step, IFS), in the order of the steps.
      level: in [0, 1].
      rise: in units of the score.
      last: evaluations that are looked back on, 2 at least.

    Returns:
      The step, or None if no evaluation is such.
    """
    for i in range(last - 1, len(scores)):
        step, score = scores[i]
        if score >= level and score - scores[i - last + 1][1] < rise:
            return step
    return None
