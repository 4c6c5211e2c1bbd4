"""The instruction following score: how often a model answers, instead of continuing the prompt.

IFS (AlShikh et al., arXiv:2307.03692) is the share of responses that a classifier calls answer-like, over prompts of
which about half are whole instructions and half the beginnings of instructions. A base model continues the latter; a
model that has learnt to be asked answers both. The classifier sees the response alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsft.config import DataConfig, TaskConfig
from jaxsft.data.conversation import rename
from jaxsft.errors import UserError
from jaxsft.evaluation.answers.writing import Writer
from jaxsft.evaluation.forms import records
from jaxsft.evaluation.papers.answer_classifier import load_classifier
from jaxsft.evaluation.task import Result, Subject, Task, by_part, digest, question_ids

HEURISTIC = "heuristic"
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


def prepare(config: TaskConfig, subject: Subject) -> Task:
    """The score on the prompts that `config` names, whose records hold `prompt`, a text, and `partial`.

    Returns:
      A task whose figures are `ifs`, `ifs_partial` and `ifs_full` (None where there is no such prompt), `gap` (full
      less partial), `standard_error` of `ifs`, `questions`, `ended` (the share of answers that met an end of turn),
      `cut`, with a trained classifier its `classifier_accuracy`, and tables by part; a record is `correct` where the
      answer is answer-like.

    Raises:
      UserError: without a classifier, and for records without prompt or `partial`.
    """
    if not config.classifier:
        raise UserError(
            "config.classifier is empty; make one by scripts/make_ifs.py and name it, or name 'heuristic' for a rule "
            "of thumb that is good for smoke tests alone."
        )
    trained = None if config.classifier == HEURISTIC else load_classifier(config.classifier)
    classify = trained or looks_like_an_answer
    asked, name = read_prompts(config.data), config.name or config.task
    writer, partial = Writer([one.text for one in asked], config, subject), np.array([one.partial for one in asked])
    ids = question_ids([[one.text, one.partial] for one in asked])
    parts = {"by_source": [one.source for one in asked], "by_task_type": [one.task_type for one in asked]}

    def measure(params: Any, adapters: Any) -> Result:
        written = writer.write(params, adapters)
        texts, ended = [one.text for one in written], np.array([one.ended for one in written])
        verdicts = [bool(verdict) for verdict in classify(texts)]

        def summary(at: np.ndarray) -> dict[str, float | None]:
            of = dict(zip([texts[i] for i in at], [verdicts[i] for i in at]))
            scores = ifs([texts[i] for i in at], partial[at].tolist(), lambda given: [of[text] for text in given])
            gap = scores["ifs_full"] - scores["ifs_partial"]
            error = math.sqrt(scores["ifs"] * (1 - scores["ifs"]) / len(at))
            found = scores | {"gap": gap, "standard_error": error, "questions": len(at)}
            found["ended"] = float(ended[at].mean())
            return {name: None if math.isnan(value) else value for name, value in found.items()}

        figures = summary(np.arange(len(asked))) | {"cut": writer.cut} | by_part(parts, summary)
        if trained is not None:
            figures["classifier_accuracy"] = trained.quality["accuracy"]
        rows = [
            {
                "task": name,
                "index": i,
                "id": ids[i],
                "prompt": one.text,
                "reference": "",
                "answer": texts[i],
                "correct": verdicts[i],
                "partial": one.partial,
                "source": one.source,
                "task_type": one.task_type,
            }
            for i, one in enumerate(asked)
        ]
        return Result(figures, rows)

    report = f"{len(asked)} prompts, {int(partial.sum())} partial, {writer.mode}, up to {config.max_new_tokens} tokens"
    return Task(name, report, digest([list(one) for one in asked]), measure)


class Asked(NamedTuple):
    """A prompt, whether it is partial, and the parts of the data it belongs to."""

    text: str
    partial: bool
    source: str
    task_type: str


def read_prompts(config: DataConfig) -> list[Asked]:
    """The prompts of all sources, as scripts/make_ifs.py writes them.

    Raises:
      UserError: for a record without `prompt` or `partial`, naming it.
    """
    found = []
    for record, where, fields, source in records(config.all_sources()):
        held = rename(record, fields) if isinstance(record, Mapping) else {}
        text, partial = held.get("prompt"), held.get("partial")
        if not (isinstance(text, str) and text.strip() and isinstance(partial, bool)):
            raise UserError(
                f"{where}: the record needs `prompt`, a text, and `partial`, true or false; make such records by "
                "scripts/make_ifs.py."
            )
        found.append(Asked(text, partial, str(held.get("source", source)), str(held.get("task_type", ""))))
    return found
