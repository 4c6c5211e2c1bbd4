"""Forms of answers, against texts that have them or not; a model's answers, against what its records say."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.lora import LoRANode
from jaxsft.config import DataConfig, FormatConfig, TaskConfig
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.answers.format_following import mean_embedding, summarize
from jaxsft.evaluation.answers.formats import Format
from jaxsft.evaluation.registry import prepare
from jaxsft.evaluation.task import Subject
from tests.evaluation.folders import make_folder

KEYS = ("thought", "hallucination")


@pytest.mark.parametrize(
    ("text", "python", "as_json"),
    [
        ("{'thought': 'so', 'hallucination': 'no'}", True, False),
        (' {"hallucination": "yes", "thought": ""}\n', True, True),
        ("{'thought': \"it's\", 'hallucination': 'no'}", True, False),
        ("{'thought': 'so', 'hallucination': 'maybe'}", False, False),
        ("{'thought': 'so'}", False, False),
        ("{'thought': 'so', 'hallucination': 'no', 'more': 1}", False, False),
        ("Here: {'thought': 'so', 'hallucination': 'no'}", False, False),
        ("{'thought': so, 'hallucination': 'no'}", False, False),
        ("{'thought': 'so', 'hallucination': 'no'", False, False),
        ("['thought', 'hallucination']", False, False),
        ("__import__('os')", False, False),
        ("{" * 5000, False, False),
        ("{[]: 1}", False, False),
        ("", False, False),
    ],
)
def test_dicts_and_objects(text, python, as_json):
    found = [Format(FormatConfig(kind, KEYS, {"hallucination": "yes|no"})).fits(text) for kind in ("dict", "json")]
    assert found == [python, as_json]


def test_any_keys_and_expressions():
    assert Format(FormatConfig("json")).fits('{"a": [1, {"b": null}]}') and not Format(FormatConfig("json")).fits("[1]")
    lines = Format(FormatConfig("regex", pattern=r"\d+\..*\n\d+\..*"))
    assert lines.fits("1. a\n2. b\n") and not lines.fits("1. a")
    assert Format(FormatConfig("dict", ("a",), {"a": "1|2"})).fits("{'a': 1}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (FormatConfig("regex"), "reads config.format.pattern alone"),
        (FormatConfig("regex", keys=("a",), pattern="a"), "reads config.format.pattern alone"),
        (FormatConfig("dict", pattern="a"), "set the kind to 'regex'"),
        (FormatConfig("dict", ("a",), {"b": "c"}), "values has 'b'"),
        (FormatConfig("regex", pattern="("), "has an expression that is none"),
    ],
)
def test_settings_that_say_nothing(settings, message):
    with pytest.raises(UserError, match=message):
        Format(settings)


def test_summary_by_hand():
    """Of three that are asked for the form two have it; of two that are not, one has not."""
    figures = summarize(*np.array([[1, 1, 0, 1, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool))
    assert figures["followed"] == pytest.approx(2 / 3) and figures["avoided"] == 0.5
    assert figures["format_accuracy"] == 0.6 and figures["standard_error"] == pytest.approx((0.24 / 5) ** 0.5)
    assert figures["ended"] == 0.2 and figures["questions"] == 5
    assert "avoided" not in summarize(np.ones(2, bool), np.ones(2, bool), np.ones(2, bool))


@pytest.fixture(scope="module")
def model(tmp_path_factory, mesh):
    folder = tmp_path_factory.mktemp("models") / "bytes"
    decoder, params = make_folder(folder)
    params = jax.tree.map(lambda p: 2 * p if p.ndim > 1 else p, params)  # far from uniform
    return Subject(decoder, load_tokenizer(str(folder)), folder, mesh), params


def task(tmp_path, records, settings, **changes):
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = DataConfig(str(tmp_path / "asked.jsonl"), template="plain", max_length=128)
    return TaskConfig(**{"task": "format", "data": data, "max_new_tokens": 6, "format": settings} | changes)


RECORDS = [{"prompt": f"{i} is {'x' * i}?", "follows": i % 3 > 0} for i in range(9)]
RECORDS[4]["completion"] = "is not read"


def test_answers_are_judged_by_what_they_were_asked_for(model, tmp_path):
    subject, params = model
    plain = prepare(task(tmp_path, RECORDS, FormatConfig("regex", pattern=".*")), subject).measure(params, None)
    answers = [record["answer"] for record in plain.records]
    assert plain.figures["followed"] == 1.0 and plain.figures["avoided"] == 0.0
    assert plain.figures["format_accuracy"] == pytest.approx(6 / 9)
    letter = min(sorted({*"".join(answers)}), key=lambda c: abs(sum(c in answer for answer in answers) - 4.5))
    pattern = f".*{re.escape(letter)}.*"
    result = prepare(task(tmp_path, RECORDS, FormatConfig("regex", pattern=pattern)), subject).measure(params, None)
    has = np.array([letter in answer for answer in answers])
    follows = np.array([record["follows"] for record in RECORDS])
    assert 0 < has.sum() < len(has), "some have it"
    assert result.figures["format_accuracy"] == pytest.approx(np.mean(has == follows))
    assert result.figures["followed"] == pytest.approx(has[follows].mean())
    assert result.figures["avoided"] == pytest.approx((~has[~follows]).mean())
    assert [record["correct"] for record in result.records] == (has == follows).tolist()
    assert len({record["id"] for record in result.records}) == 9


def test_distances_of_the_token(model, tmp_path):
    subject, params = model
    settings = FormatConfig("dict", token="z", description="abc")
    figures = prepare(task(tmp_path, RECORDS, settings), subject).measure(params, None).figures
    table = np.asarray(params["embed"]["embedding"], np.float64)
    of = lambda text: table[subject.tokenizer.encode(text).ids]
    assert figures["to_mean"] == pytest.approx(np.linalg.norm(of("z")[0] - table.mean(0)), rel=1e-5)
    assert figures["to_description"] == pytest.approx(np.linalg.norm(of("z")[0] - of("abc").mean(0)), rel=1e-5)


def test_the_mean_is_that_of_what_is_looked_up(model):
    """In blocks, and with the adapter's update."""
    _, params = model
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((258, 2), (2, 32)))
    ids = rng.integers(0, 258, 9000)
    table = np.asarray(params["embed"]["embedding"], np.float64)
    np.testing.assert_allclose(mean_embedding(params, None, ids), table[ids].mean(0), atol=1e-6)
    wanted = (table + 0.5 * np.asarray(a, np.float64) @ np.asarray(b))[ids].mean(0)
    np.testing.assert_allclose(mean_embedding(params, {"embed": LoRANode(a, b, 0.5)}, ids), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "changes", "records", "message"),
    [
        (FormatConfig(token="ab"), {}, RECORDS, "which is 2 tokens"),
        (FormatConfig(description="words"), {}, RECORDS, "config.format.token is not"),
        (FormatConfig(), {"max_new_tokens": 0}, RECORDS, "config.max_new_tokens is 0"),
        (FormatConfig(), {"max_new_tokens": 128}, RECORDS, "leave no room for a prompt"),
        (FormatConfig(), {}, [{"prompt": "a", "follows": "no"}], "'follows' is 'no'"),
    ],
)
def test_what_cannot_be_measured(model, tmp_path, settings, changes, records, message):
    with pytest.raises(UserError, match=message):
        prepare(task(tmp_path, records, settings, **changes), model[0])
