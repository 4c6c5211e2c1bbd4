"""Instructions in other words, and unrelated records beside them."""

import dataclasses
from typing import Any

from jaxsft.config.data import SourceConfig


@dataclasses.dataclass
class RewordConfig:
    """Records whose question is put in other words by a bank of wordings; see `jaxsft.mixing.reword`.

    Attributes:
      records: what is reworded; without a path that of the recipe's `train`.
      bank: a file of wordings: a JSON list of texts, or one a line. `{name}` in them stands for a group of `pattern`,
        one of `values`, another text field of the record, or, as `{prompt}` and `{answer}`, for the whole question and
        answer. An entry of the list may be a pair of texts, of which the second is how the answer is given.
      pattern: a regular expression with named groups, which fits the whole question, such as
        "(?P<context>.*)\\n(?P<instruction>[^\\n]*)"; "" has no groups.
      values: name -> text, the same for all records.
      per_record: wordings of each record, all different.
      fields: what else each record gets, such as {"follows": False}.
      seed: of the draw, in which no wording is used twice more than another.
    """

    records: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    bank: str = ""
    pattern: str = ""
    values: dict[str, str] = dataclasses.field(default_factory=dict)
    per_record: int = 1
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 42


@dataclasses.dataclass
class LeakConfig:
    """What of a task may not be in records that are to be unrelated to it; see `jaxsft.mixing.leaks`.

    Attributes:
      forbidden: texts, such as a new token, that neither question nor answer may have, in whatever case.
      words: how many consecutive words (of Chinese and Japanese characters) a question may not have in common with one
        of the task; a shorter one it may not have as a whole.
      against: further records whose questions count as the task's, such as an evaluation's.
      on_leak: "error" refuses records that leak, "drop" leaves them out and counts them.
    """

    forbidden: tuple[str, ...] = ()
    words: int = 8
    against: list[SourceConfig] = dataclasses.field(default_factory=list)
    on_leak: str = "error"


@dataclasses.dataclass
class MixConfig:
    """A task's records among unrelated ones, in exact numbers (DELIA, arXiv:2408.10841); see `jaxsft.mixing.mix`.

    Attributes:
      task: the records of the task, each of which is there once; without a path those of the recipe's `train`.
      diverse: the unrelated records.
      ratio: rho, how many of them come on each record of the task; 0 is the task alone.
      repeat: the task's own records again in the place of the unrelated ones: the baseline with as many steps.
      leaks: what is refused.
      seed: of which unrelated records are taken, and of the order.
    """

    task: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    diverse: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    ratio: float = 260.0
    repeat: bool = False
    leaks: LeakConfig = dataclasses.field(default_factory=LeakConfig)
    seed: int = 42
