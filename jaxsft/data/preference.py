"""Preference pairs: two answers to one prompt, of which one is preferred.

A record gives two conversations, the one with the preferred answer first. They stand in one row as a group of two
examples that do not see each other: member 0 is the chosen side, member 1 the rejected one. Only what differs is
supervised: assistant turns that both sides begin with are context, so that the log-probability of an example is that of
its answer.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from jaxsft.config import DataConfig
from jaxsft.data.conversation import Conversation, Message
from jaxsft.data.groups import Groups
from jaxsft.errors import UserError

if TYPE_CHECKING:
    from jaxsft.data.dataset import Dataset

CHOSEN, REJECTED = 0, 1  # variants of a record, and members of its group


def sides(conversation: Conversation, where: str) -> list[Conversation]:
    """The conversation that ends in the preferred answer, and the one that ends in the rejected answer.

    Raises:
      UserError: for a record that is no pair, a pair of which one side has no answer of its own, or a weight that a
        comparison of two answers cannot heed.
    """
    if conversation.rejected is None:
        raise UserError(
            f"{where}: the record has no rejected answer, so there is nothing to prefer; config.data.grouping "
            "'preference' needs records with 'chosen' and 'rejected'."
        )
    both = conversation.messages, conversation.rejected
    shared = _common_beginning(*both)
    for name, messages in zip(("chosen", "rejected"), both):
        if not any(message.role == "assistant" for message in messages[shared:]):
            raise UserError(
                f"{where}: the pair has no difference to learn: 'chosen' and 'rejected' agree in every answer of "
                f"{name!r}; remove the record."
            )
    weights = [conversation.weight, *(message.weight for messages in both for message in messages)]
    if bad := [weight for weight in weights if weight not in (None, 0, 1)]:
        raise UserError(
            f"{where}: the weight is {bad[0]:g}, but a pair compares whole answers: a weight may be 1, or 0 to leave "
            "the record or a message out; weigh sources with `weight` in config.data.sources."
        )
    return [
        dataclasses.replace(conversation, messages=_answer_only(messages, shared), rejected=None) for messages in both
    ]


def pairs(dataset: "Dataset", members: np.ndarray, epoch: int) -> Groups:
    """Each chosen example with its rejected one, which follows it in the data set.

    Raises:
      UserError: if more than answers is supervised, one answer would see the other, or pairs are to count unlike.
    """
    del epoch
    _refuse_unlike(dataset.config)
    return Groups.of(np.stack([members, members + 1], axis=1).ravel(), np.full(len(members), 2))


def _refuse_unlike(data: DataConfig) -> None:
    classes, cure = data.classes, "pairs count alike; weigh their sources with `weight` in config.data.sources."
    if data.supervise != "assistant":
        raise UserError(
            f"config.data.supervise is {data.supervise!r}, but preference pairs compare answers alone; set it to "
            "'assistant'."
        )
    if data.attention_unit != "example":
        raise UserError(
            f"config.data.attention_unit is {data.attention_unit!r}, under which the rejected answer would be read "
            "behind the chosen one; leave it at 'example' for preference pairs."
        )
    if data.weighting != "token":
        raise UserError(f"config.data.weighting is {data.weighting!r}, but preference {cure}")
    if classes.reward or classes.balanced or not {0.0, 1.0}.issuperset(classes.weight.values()):
        raise UserError(f"config.data.classes weighs examples, but preference {cure}")


def _common_beginning(first: list[Message], second: list[Message]) -> int:
    """How many messages two lists both begin with."""
    same = [a == b for a, b in zip(first, second)]
    return same.index(False) if False in same else len(same)


def _answer_only(messages: list[Message], shared: int) -> list[Message]:
    """The messages, of which the first `shared` are not supervised."""
    context = [dataclasses.replace(m, weight=0.0) if m.role == "assistant" else m for m in messages[:shared]]
    return context + messages[shared:]
