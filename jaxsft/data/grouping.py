"""The ways in which examples stand together, by the name that `config.data.grouping` gives them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxsft.config import DataConfig
from jaxsft.data import dcot, mixture, mixup, views
from jaxsft.data.conversation import Conversation
from jaxsft.data.groups import Groups
from jaxsft.data.preference import pairs, sides

if TYPE_CHECKING:
    from jaxsft.data.dataset import Dataset


def alone(conversation: Conversation, where: str) -> list[Conversation]:
    """The one conversation of a record."""
    del where
    return [conversation]


class Grouping(NamedTuple):
    """A way in which examples stand together, as `config.data.grouping` names it.

    Attributes:
      groups: (data set, members, epoch) -> the groups of an epoch. `members` are the examples that sources and weights
        give it, of each record its first variant; what else belongs to them, the function adds.
      expand: (conversation, where) -> the conversations that a record gives, its variants in order.
      whole: whether a record is of use only with all of its variants.
      varies: whether epochs differ in their groups.
      parts: into how many equal parts a row is divided, of which an example fills one at most: the examples of a group
        must fit in one row, whichever they are.
      read: (record, where, field map, data config) -> the conversations of a record of a form of its own, in place of
        `parse` and `expand`; None where there is none.
      notices: (data set, members) -> what users should know of the groups -> how many, as in `Report.notices`.
    """

    groups: Callable[["Dataset", np.ndarray, int], Groups]
    expand: Callable[[Conversation, str], list[Conversation]] = alone
    whole: bool = False
    varies: bool = True
    parts: int = 1
    read: Callable[[Any, str, Mapping[str, str], DataConfig], list[Conversation]] | None = None
    notices: Callable[["Dataset", np.ndarray], dict[str, int]] = lambda dataset, members: {}

    @property
    def own_examples(self) -> bool:
        """Whether records give other examples than they do by themselves."""
        return self.expand is not alone or self.read is not None


GROUPINGS: dict[str, Grouping] = {
    "example": Grouping(lambda dataset, members, epoch: Groups.single(members), varies=False),
    "preference": Grouping(pairs, sides, whole=True, varies=False, parts=2),
    "mixup": Grouping(mixup.pairs, parts=2),
    "domain": Grouping(mixture.chunks, notices=mixture.notices),
    "dcot": Grouping(dcot.groups, read=dcot.read),
    "views": Grouping(views.groups, views.variants, whole=True, varies=False, notices=views.notices),
}


def longest(config: DataConfig) -> int:
    """Tokens of an example at most."""
    return config.max_length // GROUPINGS[config.grouping].parts


def by_itself(config: DataConfig, grouping: str) -> DataConfig:
    """The data with each example by itself, none selected, cut as for a grouping: what scores and parts are of.

    Args:
      config: the data.
      grouping: the `DataConfig.grouping` under which scores or parts are to be used.
    """
    config = dataclasses.replace(config, grouping=grouping, attention_unit="example")
    config = dataclasses.replace(config, scores="", keep=1.0, parts="", part=-1)
    if not GROUPINGS[grouping].own_examples:
        config = dataclasses.replace(config, max_length=longest(config), grouping="example")
    return config


def examples_of_group(config: DataConfig) -> int:
    """How many examples stand in a group."""
    return len(config.mixture.domains) if config.grouping == "domain" else GROUPINGS[config.grouping].parts
