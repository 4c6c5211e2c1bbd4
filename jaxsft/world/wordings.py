"""The questions of `world:train` in many more wordings, of which none is one that evaluation keeps for itself.

A bank is made of the family's wordings in training, recombined: each in front of or behind words of politeness, and its
phrase ("the reverse of {x}") behind other openings, but those of the general stage. All words are the world's, so no
tokenizer meets a new one.
"""

import functools
import re
from typing import NamedTuple

from jaxsft.errors import UserError
from jaxsft.world import knowledge, skills
from jaxsft.world.draw import Draw
from jaxsft.world.records import Record

FRAMES = ("please , {}", "please tell me , {}", "tell me , {}", "question : {}", "{} please .")
OPENINGS = (
    "what is {} ?", "write {} .", "give {} .", "tell me {} .", "name {} .", "say {} .",
    "please write {} .", "please give {} .", "please tell me {} .", "please name {} .",
)  # fmt: skip
OPENED = re.compile(r"(?:what is|which is|write|give|tell me|name|compare) (the .*|\{x\} .*|number .*) [?.]")


class Family(NamedTuple):
    """What is asked in one way or another.

    Attributes:
      name: of a skill, or the noun of an attribute.
      asked: wordings of training.
      unseen: wordings that evaluation keeps.
    """

    name: str
    asked: tuple[str, ...]
    unseen: tuple[str, ...]


@functools.cache
def families() -> tuple[Family, ...]:
    """Of all questions of `world:train`."""
    kinds = [(a.noun, a) for kind in knowledge.attributes().values() for a in kind]
    kinds += [(skill.name, skill) for skill in skills.NARROW]
    return tuple(Family(name, kind.asked, kind.unseen) for name, kind in kinds)


@functools.cache
def kept() -> frozenset[str]:
    """The wordings that evaluation keeps, of all families, without names of places."""
    return frozenset(_bare(wording) for family in families() for wording in family.unseen)


@functools.cache
def bank(family: Family) -> tuple[str, ...]:
    """A family's wordings: those of training, and those made of them."""
    phrases = [match[1] for wording in family.asked if (match := OPENED.fullmatch(wording))]
    made = [frame.format(wording) for wording in family.asked for frame in FRAMES]
    made += [opening.format(phrase) for phrase in dict.fromkeys(phrases) for opening in OPENINGS]
    return tuple(dict.fromkeys(w for w in (*family.asked, *made) if _bare(w) not in kept()))


def reworded(records: tuple[Record, ...] | list[Record], seed: int) -> list[Record]:
    """Records of `world:train`, each asked in a wording of its family's bank.

    Raises:
      UserError: for a question in no wording of training.
    """
    draw = Draw("wordings", seed)
    found = []
    for record in records:
        family, arguments = _read(record)
        found.append({**record, "prompt": draw.one(bank(family)).format(**arguments)})
    return found


def _read(record: Record) -> tuple[Family, dict[str, str]]:
    """What a question asks, and of what."""
    names = {entity.name for entity in knowledge.entities()}
    for family, pattern in _patterns():
        if record["task_type"] not in (family.name, "fact"):
            continue
        match = pattern.fullmatch(record["prompt"])
        if match and ("e" not in match.groupdict() or match["e"] in names):
            return family, match.groupdict()
    raise UserError(f"{record['prompt']!r} is in no wording of world:train; give records of that split.")


@functools.cache
def _patterns() -> tuple[tuple[Family, re.Pattern], ...]:
    """Wordings as patterns of what fills them."""
    fill = lambda wording: re.sub(r"\\\{(\w)\\\}", r"(?P<\1>.+)", re.escape(wording))
    return tuple((family, re.compile(fill(wording))) for family in families() for wording in family.asked)


def _bare(wording: str) -> str:
    return re.sub(r"\{\w\}", "{}", wording)
