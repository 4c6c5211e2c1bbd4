"""How a written answer is compared with its references.

    alias        `exact_match`: without case, punctuation, articles and blanks it is one of the references (Rajpurkar et
                 al. 2016, arXiv:1606.05250; aliases as in Joshi et al. 2017, arXiv:1705.03551); `contains`: its words
                 hold those of one; `f1`: the largest harmonic mean of the shares of common words in both
    number       `strict_match`: the number behind the first "####" (Cobbe et al. 2021, arXiv:2110.14168);
                 `flexible_match`, and `exact_match`: the last number. Both as lm-evaluation-harness compares them
    stated       `exact_match`: what stands behind the first "the answer is" on its line, without the full stop (the
                 chains of thought of Suzgun et al. 2022, arXiv:2210.09261); `flexible_match`: the last "(B)" in the
                 answer where the reference is one, the last number where it is a number, else as `exact_match`
                 without case
    boxed        `exact_match`: what the last `\\\\boxed{}` holds, else all of it (`math_answers.py`)
    pattern      `exact_match`: what the pattern finds first, without surrounding blanks
    label        `exact_match` as for alias; over all answers `macro_f1`, the mean over labels of their F1, and
                 `chance`, one over the number of labels
    translation  `exact_match`: word for word; over all answers `bleu` and `chrf` (`translation.py`)

All but BLEU and chrF are from 0 to 1. An answer in which nothing was found that could be compared is unstated.
"""

import collections
import re
import string
from collections.abc import Callable
from typing import NamedTuple

from jaxsft.config import AnswerConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.answers import translation
from jaxsft.evaluation.answers.math_answers import boxed, simplest

STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
STATED = re.compile(r"the (?:final )?answer(?: is|:)[ :]*([^\n]*)", re.IGNORECASE)
LETTER, WHOLE = re.compile(r"\([A-Z]\)"), re.compile(r"-?\d+")
ARTICLES, PUNCTUATION = re.compile(r"\b(a|an|the)\b"), str.maketrans("", "", string.punctuation)


class Marks(NamedTuple):
    """What an answer is worth.

    Attributes:
      scores: name -> 0 to 1; `exact_match` among them.
      stated: whether there was anything to compare.
    """

    scores: dict[str, float]
    stated: bool = True


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous blanks, as SQuAD's evaluation has it."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the normalised words, as SQuAD's evaluation has it."""
    said, right = normalize(answer).split(), normalize(reference).split()
    common = sum((collections.Counter(said) & collections.Counter(right)).values())
    if not said or not right:
        return float(said == right)
    return 2 * common / (len(said) + len(right))


def macro_f1(predicted: list[str], right: list[str]) -> float:
    """The mean over the labels in `right` of the F1 of each against all others; answers of no label count as missed."""
    scores = []
    for label in sorted(set(right)):
        hits = sum(p == r == label for p, r in zip(predicted, right))
        scores.append(2 * hits / (predicted.count(label) + right.count(label)))
    return sum(scores) / len(scores)


def _alias(text: str, references: list[str], config: AnswerConfig) -> Marks:
    said, names = normalize(text), [normalize(reference) for reference in references]
    # a reference of articles and punctuation alone is compared as it is
    exact = said in [name for name in names if name] or text.strip() in references
    contains = exact or any(f" {name} " in f" {said} " for name in names if name)
    shares = [f1(text, ref) if name else float(text.strip() == ref) for ref, name in zip(references, names)]
    return Marks({"exact_match": float(exact), "contains": float(contains), "f1": max(shares)})


def _number(text: str, references: list[str], config: AnswerConfig) -> Marks:
    wanted = _plain_number(references[0])
    strict, flexible = STRICT.findall(text), FLEXIBLE.findall(text)
    hits = [bool(found) and _plain_number(found[at]) == wanted for found, at in ((strict, 0), (flexible, -1))]
    scores = {"exact_match": hits[1], "strict_match": hits[0], "flexible_match": hits[1]}
    return Marks({name: float(hit) for name, hit in scores.items()}, bool(flexible))


def _plain_number(text: str) -> str:
    """What lm-evaluation-harness compares: behind the last "#### ", without commas, dollars and a last full stop."""
    return re.sub(r"\.$", "", re.sub(r"(?s).*#### |[,$]", "", text).strip()).lower()


def _stated(text: str, references: list[str], config: AnswerConfig) -> Marks:
    found, wanted = STATED.search(text), references[0].strip()
    said = found[1].strip().removesuffix(".").strip() if found else ""
    kind = next((kind for kind in (LETTER, WHOLE) if kind.fullmatch(wanted)), None)
    loose = (kind.findall(text) or [""])[-1] if kind else normalize(said)
    scores = {"exact_match": said == wanted, "flexible_match": loose == (wanted if kind else normalize(wanted))}
    return Marks({name: float(hit) for name, hit in scores.items()}, bool(said))


def _boxed(text: str, references: list[str], config: AnswerConfig) -> Marks:
    said = boxed(text)
    wanted = boxed(references[0]) or references[0]
    return Marks({"exact_match": float(simplest((said or text).strip()) == simplest(wanted.strip()))}, said is not None)


def _pattern(text: str, references: list[str], config: AnswerConfig) -> Marks:
    found = re.search(config.pattern, text)
    said = (found[1] if found.re.groups else found[0]) if found else None
    right = said is not None and said.strip() in references
    return Marks({"exact_match": float(right)}, said is not None)


def _label(text: str, references: list[str], config: AnswerConfig) -> Marks:
    return Marks({"exact_match": float(normalize(text) in map(normalize, references))})


def _translation(text: str, references: list[str], config: AnswerConfig) -> Marks:
    return Marks({"exact_match": float(text.strip() in references), "chrf": translation.chrf(text, references)})


def _labels(texts: list[str], references: list[list[str]]) -> dict[str, float]:
    right = [normalize(own[0]) for own in references]
    return {"macro_f1": macro_f1([normalize(text) for text in texts], right), "chance": 1 / len(set(right))}


Match = Callable[[str, list[str], AnswerConfig], Marks]
MATCHES: dict[str, Match] = {
    "alias": _alias,
    "number": _number,
    "stated": _stated,
    "boxed": _boxed,
    "pattern": _pattern,
    "label": _label,
    "translation": _translation,
}
# figures of all answers together: fn(answers, references of each)
OVER_ALL: dict[str, Callable[[list[str], list[list[str]]], dict[str, float]]] = {
    "label": _labels,
    "translation": translation.over_all,
}


def check(config: AnswerConfig) -> None:
    """Refuses what cannot be compared with.

    Raises:
      UserError: for a pattern that is none, or a missing package.
    """
    if (config.match == "pattern") != bool(config.pattern):
        raise UserError(
            f"config.answer.match is {config.match!r} and config.answer.pattern {config.pattern!r}; a pattern belongs "
            "to the match 'pattern', which needs one."
        )
    try:
        re.compile(config.pattern)
    except re.error as error:
        raise UserError(f"config.answer.pattern is no regular expression ({error}); mend it.") from error
    if config.match == "translation":
        translation.check()
