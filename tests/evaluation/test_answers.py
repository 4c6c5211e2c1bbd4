"""Answers against references: truth tables, and what lm-evaluation-harness says of the same ones."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from jaxsft.config import AnswerConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.answers import translation
from jaxsft.evaluation.answers.matching import MATCHES, OVER_ALL, check, f1, macro_f1, normalize
from jaxsft.evaluation.answers.math_answers import boxed
from jaxsft.evaluation.choices.calibration import calibration_error

RECORDED = json.loads((Path(__file__).parent / "recorded" / "answers.json").read_text())
needs_sacrebleu = pytest.mark.skipif(
    not importlib.util.find_spec("sacrebleu"), reason="sacrebleu is not installed; pip install 'jaxsft[eval]'"
)


def marks(match, text, references, **config):
    return MATCHES[match](text, references, AnswerConfig(match, **config))


@pytest.mark.parametrize(("answer", "reference", "strict", "flexible"), RECORDED["numbers"])
def test_numbers_as_the_harness_compares_them(answer, reference, strict, flexible):
    scores = marks("number", answer, [reference]).scores
    assert (scores["strict_match"], scores["flexible_match"]) == (strict, flexible)
    assert scores["exact_match"] == flexible


def test_an_answer_without_number_is_unstated():
    assert not marks("number", "none", ["#### 5"]).stated
    assert marks("number", "5", ["#### 5"]).stated


@pytest.mark.parametrize(("answer", "reference", "right"), RECORDED["math"])
def test_mathematics_as_the_harness_compares_it(answer, reference, right):
    found = marks("boxed", answer, [reference])
    assert bool(found.scores["exact_match"] and found.stated) == right


def test_boxes():
    assert boxed("\\boxed{a{b}c} and \\boxed{{d}}.") == "{d}"
    assert boxed("$\\boxed 7$") == "7"
    assert boxed("no box") is None and boxed("\\boxed{open") is None
    assert marks("boxed", "12", ["a solution ... \\boxed{12}"]).scores["exact_match"] == 1  # of MATH's solutions


@pytest.mark.parametrize(("answer", "reference", "exact", "share"), RECORDED["words"])
def test_words_as_the_harness_compares_them(answer, reference, exact, share):
    scores = marks("alias", answer, [reference]).scores
    assert scores["exact_match"] == exact and scores["f1"] == pytest.approx(share)


def test_aliases_by_hand():
    assert normalize(" The  Beatles, an ENGLISH band! ") == "beatles english band"
    names = ["Pulsar", "Beltex Optics"]
    assert marks("alias", "a PULSAR.", names).scores == {"exact_match": 1, "contains": 1, "f1": 1}
    scores = marks("alias", "It is called a pulsar", names).scores
    assert scores == {"exact_match": 0, "contains": 1, "f1": pytest.approx(2 / 5)}
    assert marks("alias", "pulsars", names).scores == {"exact_match": 0, "contains": 0, "f1": 0}  # whole words
    assert marks("alias", "money", ["one"]).scores["contains"] == 0
    assert marks("alias", "", ["!"]).scores["exact_match"] == 0  # nothing is no answer to "!"
    assert marks("alias", "The", ["The"]).scores == {"exact_match": 1, "contains": 1, "f1": 1}
    assert marks("alias", "", ["the"]).scores == {"exact_match": 0, "contains": 0, "f1": 0}
    assert f1("", "") == 1 and f1("", "x") == 0


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "flexible", "stated"),
    [
        ("So the answer is (B).", "(B)", 1, 1, 1),
        ("So the answer is (B)", "(B)", 1, 1, 1),
        ("THE ANSWER IS (B).\nQ: more", "(B)", 1, 1, 1),
        ("The answer is: (B).", "(B)", 1, 1, 1),
        ("The final answer is (B).", "(B)", 1, 1, 1),
        ("the answer is (B) 12/14/2026.", "(B)", 0, 1, 1),
        ("(A)? No, (B)", "(B)", 0, 1, 0),
        ("the answer is (A). Or the answer is (B).", "(B)", 0, 1, 1),
        ("the answer is 24.", "24", 1, 1, 1),
        ("3 and 21 make 24", "24", 0, 1, 0),
        ("the answer is True.", "True", 1, 1, 1),
        ("the answer is true.", "True", 0, 1, 1),
        ("True", "True", 0, 0, 0),
    ],
)
def test_statements(answer, reference, exact, flexible, stated):
    found = marks("stated", answer, [reference])
    assert (found.scores["exact_match"], found.scores["flexible_match"], found.stated) == (exact, flexible, stated)


def test_patterns():
    config = {"pattern": r"Answer: (\w+)"}
    assert marks("pattern", "x\nAnswer: red\nAnswer: blue", ["red"], **config) == ({"exact_match": 1}, True)
    assert marks("pattern", "red", ["red"], **config) == ({"exact_match": 0}, False)
    assert marks("pattern", "is 12 or 13", ["12"], pattern=r"\d+").scores["exact_match"] == 1
    for bad, message in (
        (AnswerConfig("pattern"), "needs one"),
        (AnswerConfig("alias", pattern="x"), "belongs to the match 'pattern'"),
        (AnswerConfig("pattern", pattern="("), "no regular expression"),
    ):
        with pytest.raises(UserError, match=message):
            check(bad)


def test_labels_by_hand():
    """a: 1 of 2 found, 1 of 2 said right; b: 1 of 2 found, 1 of 1 right; c: never said."""
    said, right = ["a", "b", "a", "other", "d", "d"], ["a", "b", "b", "a", "c", "c"]
    by_hand = (2 * 1 / (2 + 2) + 2 * 1 / (1 + 2) + 0) / 3
    assert macro_f1(said, right) == pytest.approx(by_hand)
    figures = OVER_ALL["label"](["A.", "the b"], [["a"], ["b"]])
    assert figures == {"macro_f1": 1, "chance": 0.5}
    assert marks("label", "Yes.", ["yes"]).scores["exact_match"] == 1


@needs_sacrebleu
def test_translations_as_the_harness_scores_them():
    recorded = RECORDED["translations"]
    found = OVER_ALL["translation"](recorded["answers"], recorded["references"])
    assert found["bleu"] == pytest.approx(recorded["bleu"]) and found["chrf"] == pytest.approx(recorded["chrf"])
    assert "tok:13a" in found["bleu_signature"] and "nc:6" in found["chrf_signature"]
    same = marks("translation", "It rains.", ["It rains."]).scores
    assert same == {"exact_match": 1, "chrf": pytest.approx(100)}
    check(AnswerConfig("translation"))


@needs_sacrebleu
def test_references_of_unequal_number_are_all_used():
    """The last answer has one reference, the first two."""
    texts, references = ["a b c d e", "x y z w v"], [["no such words here", "a b c d e"], ["x y z w v"]]
    assert translation.over_all(texts, references)["bleu"] == pytest.approx(100)


def test_without_sacrebleu(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"needs sacrebleu; `pip install jaxsft\[eval\]`"):
        check(AnswerConfig("translation"))


def test_calibration_by_hand():
    """Two bins of equal width: (0.5] and (1]; of equal mass: the three least sure, then the two surest."""
    confidence, right = np.array([0.3, 0.5, 0.6, 0.9, 1.0]), np.array([1, 0, 0, 1, 1], bool)
    width = 2 / 5 * abs(1 / 2 - 0.4) + 3 / 5 * abs(2 / 3 - 2.5 / 3)
    assert calibration_error(confidence, right, bins=2) == pytest.approx(width)
    mass = 3 / 5 * abs(1 / 3 - 1.4 / 3) + 2 / 5 * abs(1 - 0.95)
    assert calibration_error(confidence, right, equal_mass=True, bins=2) == pytest.approx(mass)
    assert calibration_error(confidence, right, equal_mass=True, bins=99) == pytest.approx(
        np.abs(confidence - right).mean()
    )
    always = np.full(10, 0.7)
    assert calibration_error(always, np.arange(10) < 7) == pytest.approx(0)
