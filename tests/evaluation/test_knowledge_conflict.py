"""Answers found where they stand and nowhere else, rates that cannot exceed 1, scores by sign; and a model of the world
that is told what contradicts its facts."""

import json

import jax
import numpy as np
import pytest

from jaxsft.config import DataConfig, ModelConfig, TaskConfig
from jaxsft.errors import UserError
from jaxsft.evaluation import registry
from jaxsft.evaluation.papers.first_hit import first_hit, normalize
from jaxsft.evaluation.papers.knowledge_conflict import parse_item, preferences, rates, read_known
from jaxsft.evaluation.suite import Evaluation
from jaxsft.evaluation.task import Subject
from jaxsft.training.restore import open_model
from jaxsft.world import records
from tests.evaluation.pages import figures_on_the_page


@pytest.mark.parametrize(
    "text, says",
    [
        ("The U.S.A.'s  Café-bar!", "usa s cafe bar"),
        ("an Apple a day, the end", "apple day end"),
        ("Paris,France", "paris france"),
        ("ﬁne \u00bd", "fine 1 2"),
        ("O\u2019Brien's 3.5 snake_case", "o brien s 3 5 snake case"),
        ("Rome.It", "rome it"),
        ("the", ""),
    ],
)
def test_normalised(text, says):
    assert normalize(text) == says


@pytest.mark.parametrize(
    "text, found",
    [
        ("It is in the USA.", 0),
        ("Common usage is Berlin", 1),
        ("usage", None),
        ("Berlin, not the USA", 1),
        ("the u.s.a. and then Berlin", 0),
        ("BERLINER", None),
        ("", None),
        ("Usa", 0),
        ("Berlin's mayor", 1),
    ],
)
def test_the_first_answer_counts(text, found):
    assert first_hit(text, (["USA"], ["Berlin", "capital of Germany"])) == found


@pytest.mark.parametrize(
    "form, text, found",
    [
        ("U.S.", "Tell us more", None),
        ("U.S.", "Tell us: the US", 0),
        ("US", "the U.S. of course", 0),
        ("u.s.", "Us, the U.S", 0),
        ("U.S.", "in the us", 0),  # where all is small nothing is told apart
        ("IT", "It is Berlin", None),
        ("it", "It is", 0),
        ("IT", "He works in I.T.", 0),
        ("US Navy", "the us navy, Sir", 0),
    ],
)
def test_two_capitals_are_no_small_word(form, text, found):
    assert first_hit(text, ([form],)) == found


def test_other_forms_and_longer_ones():
    assert first_hit("in the capital of Germany", (["USA"], ["Berlin", "the capital of Germany"])) == 1
    assert first_hit("New York City", (["New York"], ["New York City"])) == 1, "both begin there; the longer is meant"
    assert first_hit("New York, state", (["New York"], ["New York City"])) == 0
    assert first_hit("anything", (["the"],)) is None, "nothing is left to look for"
    assert first_hit("It is 35 km.", (["3.5 km"], ["36 km"])) is None, "a decimal point is none of an abbreviation"


def test_rates():
    assert rates([0, 0, 1, None]) == {
        "counterfactual": 0.5, "parametric": 0.25, "standard_error": 0.25, "questions": 4
    }  # fmt: skip
    random = np.random.default_rng(0)
    for _ in range(20):
        outcomes = [(0, 1, None)[i] for i in random.integers(3, size=7)]
        found = rates(outcomes)
        assert 0 <= found["counterfactual"] + found["parametric"] <= 1
    assert np.isnan(rates([])["counterfactual"])


def test_the_score_of_a_model_of_two_tokens():
    """Answers "x" and "y y" of a model that says x with 0.8 and y with 0.2: log 0.8 - log 0.2 a token."""
    log_likelihoods = np.array([[np.log(0.8), 2 * np.log(0.2)], [2 * np.log(0.2), np.log(0.8)]])
    scores = preferences(log_likelihoods, np.array([[1, 2], [2, 1]]))
    np.testing.assert_allclose(scores, [np.log(4), -np.log(4)])


def test_items():
    record = {"context": "c", "question": "q", "answer": "Rome", "memory_answer": ["Paris", "City of Light"]}
    assert parse_item(record, "here", "file") == ("c", "q", ["Rome"], ["Paris", "City of Light"], "file", "")
    other = {k: v for k, v in record.items() if k != "memory_answer"} | {"parametric_answer": "Paris"}
    assert parse_item(other, "here").memory == ["Paris"]
    with pytest.raises(UserError, match="here: the context's answer and memory's are the same, 'the PARIS'"):
        parse_item(record | {"answer": "the PARIS"}, "here")
    with pytest.raises(UserError, match="`answer` is 'the'; it must be a text with a word in it"):
        parse_item(record | {"answer": "the"}, "here")
    with pytest.raises(UserError, match="`memory_answer` is None"):
        parse_item({k: v for k, v in record.items() if k != "memory_answer"}, "here")
    with pytest.raises(UserError, match="`context` is ''"):
        parse_item(record | {"context": ""}, "here")


@pytest.fixture(scope="module")
def base(mesh):
    opened = open_model("world:base", ModelConfig(), mesh)
    return Subject(opened.decoder, opened.tokenizer, opened.source, mesh), opened.params


@pytest.fixture
def items():
    """Facts that the world's base knows, each behind a statement with another's value."""
    facts = [r for r in records.split("cloze") if r["prompt"].endswith("was born in")][:10]
    other = {f["prompt"]: facts[i - 1]["completion"] for i, f in enumerate(facts)}
    return [
        {"context": f"{f['prompt']} {other[f['prompt']]} .", "question": f["prompt"], "answer": other[f["prompt"]],
         "memory_answer": f["completion"], "task_type": str(i % 2)}
        for i, f in enumerate(facts)
        if other[f["prompt"]] != f["completion"]
    ]  # fmt: skip


def task(tmp_path, items, **changes):
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    data = DataConfig(path=str(tmp_path / "items.jsonl"), template="none", max_length=64)
    return TaskConfig("conflict", "knowledge_conflict", data, max_new_tokens=1, **changes)


def test_the_task_on_a_model_that_knows(base, items, tmp_path):
    subject, params = base
    config = task(tmp_path, items)
    result = registry.prepare(config, subject).measure(params, None)
    figures = result.figures
    assert figures.keys() == figures_on_the_page("knowledge_conflict") | {"by_task_type"}
    assert figures["recalled"] == 1.0 and figures["questions"] == len(items) and figures["unknown"] == 0
    assert figures["counterfactual"] + figures["parametric"] <= 1
    said = [record["answer"] for record in result.records]
    assert figures["counterfactual"] == np.mean([said[i] == items[i]["answer"] for i in range(len(items))])
    assert figures["parametric"] == np.mean([said[i] == items[i]["memory_answer"] for i in range(len(items))])
    for name in ("counterfactual", "parametric", "prefers_context"):
        assert np.mean([record["scores"][name] for record in result.records]) == pytest.approx(figures[name])
    # an answer is one token, and the likeliest is what the model writes
    for item, record in zip(items, result.records):
        if record["answer"] in (item["answer"], item["memory_answer"]):
            assert (record["score"] > 0) == record["correct"]
    halves = [figures["by_task_type"][name]["counterfactual"] for name in ("0", "1")]
    sizes = [figures["by_task_type"][name]["questions"] for name in ("0", "1")]
    assert np.dot(halves, sizes) / sum(sizes) == pytest.approx(figures["counterfactual"])


def test_only_what_the_base_recalls_is_asked(base, items, tmp_path):
    subject, params = base
    items[0]["memory_answer"] = "banan"  # not what it knows
    config = task(tmp_path, items)
    result = registry.prepare(config, subject).measure(params, None)
    assert [record["recalled"] for record in result.records] == [False] + [True] * (len(items) - 1)
    Evaluation({"tasks": {}}, result.records, {}).write(tmp_path / "base.json")
    config.known = str(tmp_path / "base.jsonl")
    assert len(read_known(config.known, "conflict")) == len(items) - 1
    again = registry.prepare(config, subject).measure(params, None)
    assert again.figures["unknown"] == 1 and again.figures["recalled"] == 1.0
    assert [r["id"] for r in again.records] == [r["id"] for r in result.records[1:]]
    config.known = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match=r"config.known: no file"):
        registry.prepare(config, subject)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    for odd in (tmp_path / "bytes.jsonl", tmp_path):
        with pytest.raises(UserError, match="is no JSON Lines file"):
            read_known(odd, "conflict")
    (tmp_path / "odd.jsonl").write_text('3\n{"task": "conflict", "recalled": true}\n')
    with pytest.raises(UserError, match="has no answers of a task 'conflict'"):
        read_known(tmp_path / "odd.jsonl", "conflict")
    with pytest.raises(UserError, match="has no answers of a task 'other'"):
        read_known(tmp_path / "base.jsonl", "other")
    (tmp_path / "none.jsonl").write_text(json.dumps(result.records[0]) + "\n")
    config.known = str(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="from memory"):
        registry.prepare(config, subject)


def test_scores_by_one_pass_an_answer(base, items, tmp_path):
    """Nats a token of answers of one and of two words, behind context and question, on a model of the world."""
    subject, params = base
    decoder, tokenizer = subject.decoder, subject.tokenizer
    items[1]["answer"] += " the"
    items[2]["memory_answer"] += " ."
    found = registry.prepare(task(tmp_path, items), subject).measure(params, None)

    def mean(item, answer):
        before = [tokenizer.bos_id] * (tokenizer.bos_id is not None)
        before += tokenizer.encode(f"{item['context']}\n\n{item['question']}").ids
        own = tokenizer.encode(answer).ids
        assert len(own) == len(answer.split())
        ids = np.array([before + own])
        hidden = decoder.forward(params, ids, np.arange(ids.shape[1])[None], np.ones_like(ids)).hidden
        log_p = jax.nn.log_softmax(decoder.head(decoder.head_params(params), hidden))[0]
        return np.mean([log_p[len(before) + i - 1, token] for i, token in enumerate(own)])

    by_hand = [mean(item, item["answer"]) - mean(item, item["memory_answer"]) for item in items]
    np.testing.assert_allclose([record["score"] for record in found.records], by_hand, atol=1e-4)
    assert found.figures["score"] == pytest.approx(np.mean(by_hand), abs=1e-4)
    assert found.figures["prefers_context"] == np.mean(np.array(by_hand) > 0)
    one = registry.prepare(task(tmp_path, items[3:4]), subject).measure(params, None)
    assert one.records[0]["score"] == pytest.approx(by_hand[3], abs=1e-4), "whatever stands beside"
