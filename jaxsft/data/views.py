"""The grouping "views": a question and other ways of asking it, with the same answer.

A record may carry `views`, a list of strings, each of which can stand in the place of its last user turn. The record as
it is and its views stand in one row as a group of examples that do not see each other: member 0 is the record, the
others are its views in their order. A record without views is a group of one.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from jaxsft.config import DataConfig
from jaxsft.data.conversation import Conversation
from jaxsft.data.groups import Groups
from jaxsft.errors import UserError

if TYPE_CHECKING:
    from jaxsft.data.dataset import Dataset


def variants(conversation: Conversation, where: str) -> list[Conversation]:
    """The conversation, and the same with its last user turn replaced by each view.

    Raises:
      UserError: for views that are no list of strings, or that have no user turn to replace.
    """
    views = conversation.extras.get("views", [])
    if not isinstance(views, list) or not all(isinstance(view, str) for view in views):
        raise UserError(f"{where}: 'views' is {views!r}; it must be a list of strings, each another prompt.")
    asked = [i for i, message in enumerate(conversation.messages) if message.role == "user"]
    if views and not asked:
        raise UserError(f"{where}: the record has views but no user turn that they could replace; remove them.")
    several = [conversation]
    for view in views:
        messages = list(conversation.messages)
        messages[asked[-1]] = dataclasses.replace(messages[asked[-1]], content=view)
        several.append(dataclasses.replace(conversation, messages=messages))
    return several


def groups(dataset: "Dataset", members: np.ndarray, epoch: int) -> Groups:
    """Each record with as many of its views, from the first on, as fit with it in a row.

    Raises:
      UserError: where no record has views, and for settings under which members could not be compared.
    """
    del epoch
    _refuse(dataset.config, any_views=bool(dataset.variants.any()))
    sizes = _sizes(dataset)[0][members]
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return Groups.of(np.repeat(members, sizes) + within, sizes)


def notices(dataset: "Dataset", members: np.ndarray) -> dict[str, int]:
    """How many views are left out because the row is full."""
    fitting, given = (sizes[members].sum() for sizes in _sizes(dataset))
    return {"views that no longer fit in a row with their record": int(given - fitting)} if fitting < given else {}


def _sizes(dataset: "Dataset") -> tuple[np.ndarray, np.ndarray]:
    """int64 [examples], the examples of each record that fit in a row, and all of them, at its plain example."""
    is_plain = dataset.variants == 0
    plain = np.flatnonzero(is_plain)[np.cumsum(is_plain) - 1]  # views follow their plain example
    ends = np.cumsum(dataset.lengths, dtype=np.int64)
    fits = ends - ends[plain] + dataset.lengths[plain] <= dataset.config.max_length
    fitting, given = (np.bincount(examples, minlength=len(plain)) for examples in (plain[fits], plain))
    return fitting, given


def _refuse(data: DataConfig, any_views: bool) -> None:
    if not any_views:
        raise UserError(
            "config.data.grouping is 'views', but no record has any; give records a field 'views', a list of other "
            "prompts, or map one by config.data.fields."
        )
    if data.supervise != "assistant":
        raise UserError(
            f"config.data.supervise is {data.supervise!r}, but views have only their answers in common; set it to "
            "'assistant'."
        )
    if data.attention_unit != "example":
        raise UserError(
            f"config.data.attention_unit is {data.attention_unit!r}, under which a view would be read behind the "
            "answer; leave it at 'example' for the grouping 'views'."
        )
    if not data.packing:
        raise UserError("config.data.packing is False, but records and their views share rows; leave it True.")
