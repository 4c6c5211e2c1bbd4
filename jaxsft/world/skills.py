"""Small skills in text: what each asks, its answer, how a poor source gets it wrong, and the ways to put it."""

import dataclasses
from collections.abc import Callable

from jaxsft.world.draw import Draw

LETTERS = "bcdfghjklmnpqrst"
DIGITS = tuple(str(n) for n in range(10))


@dataclasses.dataclass(frozen=True)
class Skill:
    """A family of tasks.

    Attributes:
      name: of the family.
      draw: arguments by name; they fill the wordings.
      answer: from the arguments.
      wrong: the poor source's answer where it errs, from the arguments; by chance it may be right.
      statement: the fact as a sentence of the pretraining text, `{y}` being the answer, which ends it.
      asked: wordings of fine-tuning; the first two also stand in the pretraining text.
      unseen: wordings that fine-tuning never uses, of words that it does use.
    """

    name: str
    draw: Callable[[Draw], dict[str, str]]
    answer: Callable[..., str]
    wrong: Callable[..., str]
    statement: str
    asked: tuple[str, ...]
    unseen: tuple[str, ...] = ()


def _letters(fewest: int, most: int) -> Callable[[Draw], dict[str, str]]:
    return lambda draw: {"x": " ".join(draw.some(LETTERS, fewest + draw.below(most - fewest + 1)))}


def _numbers(draw: Draw) -> dict[str, str]:
    return {"x": " ".join(draw.some(DIGITS, 2 + draw.below(2)))}


def _pair(draw: Draw) -> dict[str, str]:
    return {"a": draw.one(DIGITS), "b": draw.one(DIGITS)}


def _unequal(draw: Draw) -> dict[str, str]:
    return dict(zip("ab", draw.some(DIGITS, 2)))


def _ordered(draw: Draw) -> dict[str, str]:
    one, other = draw.below(10), draw.below(10)
    return {"a": str(max(one, other)), "b": str(min(one, other))}


def _place(draw: Draw) -> dict[str, str]:
    letters = draw.some(LETTERS, 2 + draw.below(2))
    return {"x": " ".join(letters), "k": str(1 + draw.below(len(letters)))}


def _member(draw: Draw) -> dict[str, str]:
    letters = draw.some(LETTERS, 3 + draw.below(2))
    return {"x": " ".join(letters[1:]), "k": letters[draw.below(2)]}


NARROW = (
    Skill(
        "reverse", _letters(2, 3), lambda x: " ".join(x.split()[::-1]), lambda x: x,
        "{x} backwards is {y} .",
        ("reverse {x} .", "what is {x} backwards ?", "write {x} backwards .", "give the reverse of {x} ."),
        ("give {x} backwards .", "what is the reverse of {x} ?", "write the reverse of {x} .",
         "what is {x} , backwards ?"),
    ),
    Skill(
        "sort", _letters(2, 3), lambda x: " ".join(sorted(x.split())), lambda x: x,
        "{x} in order is {y} .",
        ("sort {x} .", "what is {x} in order ?", "write {x} in order .", "give the order of {x} ."),
        ("give {x} in order .", "what is the order of {x} ?", "write the order of {x} .", "what is {x} , in order ?"),
    ),
    Skill(
        "add", _pair, lambda a, b: str(int(a) + int(b)), lambda a, b: str(int(a) + int(b) + 1),
        "{a} plus {b} is {y} .",
        ("what is {a} plus {b} ?", "add {a} and {b} .", "give the sum of {a} and {b} .", "write {a} plus {b} ."),
        ("give {a} plus {b} .", "what is the sum of {a} and {b} ?", "write the sum of {a} and {b} .",
         "add {a} and {b} , write the sum ."),
    ),
    Skill(
        "compare", _unequal, lambda a, b: max(a, b), lambda a, b: a,
        "of {a} and {b} the greater is {y} .",
        ("which is greater , {a} or {b} ?", "give the greater of {a} and {b} .", "what is the greater of {a} and {b} ?",
         "compare {a} and {b} , write the greater ."),
        ("write the greater of {a} and {b} .", "which is the greater of {a} and {b} ?",
         "compare {a} and {b} , which is greater ?", "give the greater , {a} or {b} ."),
    ),
    Skill(
        "lookup", _place, lambda x, k: x.split()[int(k) - 1], lambda x, k: x.split()[0],
        "number {k} of {x} is {y} .",
        ("what is number {k} of {x} ?", "which letter is number {k} in {x} ?", "give number {k} of {x} .",
         "write the letter that is number {k} in {x} ."),
        ("write number {k} of {x} .", "what is the letter that is number {k} in {x} ?",
         "give the letter number {k} of {x} .", "which is number {k} of {x} ?"),
    ),
    Skill(
        "first", _letters(2, 3), lambda x: x.split()[0], lambda x: x.split()[-1],
        "the first of {x} is {y} .",
        ("what is the first of {x} ?", "give the first of {x} .", "write the first letter of {x} .",
         "which letter is first in {x} ?"),
        ("write the first of {x} .", "what is the first letter of {x} ?", "give the first letter in {x} .",
         "which is the first letter of {x} ?"),
    ),
    Skill(
        "count", _letters(1, 5), lambda x: str(len(x.split())), lambda x: "3",
        "the count of {x} is {y} .",
        ("count {x} .", "how many letters are in {x} ?", "give the count of {x} .",
         "write how many letters are in {x} ."),
        ("give the count of letters in {x} .", "count the letters in {x} .", "write the count of {x} .",
         "how many letters , count {x} ."),
    ),
    Skill(
        "max", _numbers, lambda x: max(x.split()), lambda x: x.split()[0],
        "the greatest of {x} is {y} .",
        ("what is the greatest of {x} ?", "give the greatest number in {x} .", "which number in {x} is the greatest ?",
         "write the greatest of {x} ."),
        ("write the greatest number in {x} .", "which is the greatest of {x} ?", "give the greatest of {x} .",
         "what is the greatest number of {x} ?"),
    ),
    Skill(
        "member", _member, lambda x, k: "yes" if k in x.split() else "no", lambda x, k: "yes",
        "is {k} among {x} : {y} .",
        ("is {k} in {x} ?", "does {x} have {k} ?", "tell me if {k} is in {x} .", "is {k} in {x} , yes or no ?"),
        ("tell me if {x} have {k} .", "does {x} have {k} , yes or no ?", "tell me if {k} is in {x} , yes or no .",
         "tell me , is {k} in {x} ?"),
    ),
)  # fmt: skip

GENERAL = (
    Skill(
        "copy", _letters(2, 3), lambda x: x, lambda x: x,
        "{x} again is {y} .",
        ("please repeat {x} .", "say {x} again ."),
    ),
    Skill(
        "last", _letters(2, 3), lambda x: x.split()[-1], lambda x: x.split()[0],
        "the last of {x} is {y} .",
        ("please say the last of {x} .", "i want to know what comes last in {x} ."),
    ),
    Skill(
        "min", _numbers, lambda x: min(x.split()), lambda x: x.split()[0],
        "the smallest of {x} is {y} .",
        ("please say the smallest of {x} .", "i want to know what is smallest in {x} ."),
    ),
    Skill(
        "subtract", _ordered, lambda a, b: str(int(a) - int(b)), lambda a, b: a,
        "{a} minus {b} is {y} .",
        ("please say {a} minus {b} .", "i want to know what {a} minus {b} is ."),
    ),
)  # fmt: skip
