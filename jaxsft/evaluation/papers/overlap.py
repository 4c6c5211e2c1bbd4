"""Questions of which the training data says the answer, told from those that only pretraining can have taught.

Closed-book questions probe what a model knows of the world (LoRAMoE, arXiv:2312.09979, asks them before and after
fine-tuning, the overlap with the training data filtered out too). How that paper filters is not known to us; this is
the test-train overlap of Lewis et al. (arXiv:2008.02637): a question overlaps if the training data asks it in the same
words, or if one of its answers is a response of the training data as a whole, both normalised as SQuAD's evaluation has
it. The paper finds paraphrases by hand as well; this does not.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from jaxsft.config import SourceConfig
from jaxsft.data.conversation import parse
from jaxsft.errors import UserError
from jaxsft.evaluation.answers.matching import normalize
from jaxsft.evaluation.forms import parse_written, records


class Seen(NamedTuple):
    """What training data asks and answers, normalised."""

    questions: frozenset[str]
    answers: frozenset[str]


class Filtered(NamedTuple):
    """Records without overlap, as they were, and how many were left out for their question or their answer."""

    records: list[Any]
    by_question: int
    by_answer: int


def read_seen(config: SourceConfig) -> Seen:
    """Every turn of users and of assistants in some conversations.

    Raises:
      UserError: for records that are none.
    """
    found = {"user": set(), "assistant": set()}
    for record, where, fields, _ in records([config]):
        for message in parse(record, where, fields).messages:
            if message.role in found and (said := normalize(message.content or "")):
                found[message.role].add(said)
    return Seen(frozenset(found["user"]), frozenset(found["assistant"]))


def overlaps(question: str, answers: Collection[str], seen: Seen) -> str:
    """ "question" or "answer", by what a question overlaps, or ""."""
    if normalize(question) in seen.questions:
        return "question"
    return "answer" if any(normalize(answer) in seen.answers for answer in answers) else ""


def without_overlap(config: SourceConfig, seen: Seen, separator: str = "") -> Filtered:
    """The questions of a file that training data does not answer.

    Args:
      config: the file; records are those of the task "generation".
      seen: what the training data says.
      separator: what stands between answers that are one text.

    Raises:
      UserError: for records that ask nothing, and where none is left.
    """
    kept, counts = [], {"question": 0, "answer": 0}
    for record, *place in records([config]):
        written = parse_written(record, *place, separator)
        asked = written.conversation.messages[-2].content or ""
        if reason := overlaps(asked, written.answers, seen):
            counts[reason] += 1
        else:
            kept.append(record)
    if not kept:
        raise UserError(f"{config.path} has no question that the training data does not answer; nothing is left.")
    return Filtered(kept, counts["question"], counts["answer"])
