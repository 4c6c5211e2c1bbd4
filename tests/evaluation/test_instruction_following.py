"""The score by classifiers that say one thing, cuts by what they must add up to, the trained classifier by texts that
anyone could tell apart, and the task on a model that knows no instructions."""

import itertools
import json
import math

import numpy as np
import pytest

from jaxsft.config import DataConfig, SourceConfig, TaskConfig
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation import registry
from jaxsft.evaluation.papers.answer_classifier import features, load_classifier, train_classifier
from jaxsft.evaluation.papers.instruction_cuts import Turn, cut, examples, first_turns, prompts
from jaxsft.evaluation.papers.instruction_following import first_stop, ifs, looks_like_an_answer, prepare
from jaxsft.evaluation.task import Subject
from tests.evaluation.folders import make_folder
from tests.evaluation.pages import figures_on_the_page

TURNS = [Turn(f"Tell me about  number {i}\nand its friends please", f"Number {i} is large. It has friends.") for i in
         range(40)]  # fmt: skip


def test_the_score_of_all_is_the_weighted_mean_of_partial_and_full():
    answers, partial = [True, False, True, True, False], [True, True, False, False, False]
    scores = ifs("abcde", partial, lambda texts: answers)
    assert scores == {"ifs": 3 / 5, "ifs_partial": 1 / 2, "ifs_full": 2 / 3}
    assert scores["ifs"] == pytest.approx((2 * scores["ifs_partial"] + 3 * scores["ifs_full"]) / 5)


@pytest.mark.parametrize("verdict", [True, False])
def test_classifiers_of_one_verdict(verdict):
    scores = ifs(["a", "b"], [True, False], lambda texts: [verdict] * len(texts))
    assert set(scores.values()) == {float(verdict)}


def test_no_prompt_of_a_kind_is_no_number():
    scores = ifs(["a"], [False], lambda texts: [False])
    assert (scores["ifs"], scores["ifs_full"]) == (0, 0) and math.isnan(scores["ifs_partial"])
    assert all(math.isnan(value) for value in ifs([], [], lambda texts: []).values())
    with pytest.raises(ValueError, match="2 responses"):
        ifs(["a", "b"], [True], lambda texts: [True, True])


def test_cuts_lose_nothing_and_leave_no_empty_side():
    random = np.random.default_rng(0)
    text = "  one two\n three  "
    found = {cut(text, random) for _ in range(60)}
    assert found == {("one", "two\n three"), ("one two", "three")}
    assert cut("alone", random) is None and cut("  alone\n", random) is None


def test_what_is_told_apart():
    made = examples(TURNS, seed=3)
    assert [e.answer for e in made] == [True, False] * len(TURNS)
    rests = set()
    for turn, (right, wrong) in zip(TURNS, zip(made[::2], made[1::2])):
        assert right.text == turn.response
        rest, _, response = wrong.text.partition(f"\n{turn.response}")
        assert turn.instruction.endswith(rest) and 0 < len(rest) < len(turn.instruction) and response == ""
        rests.add(wrong.text.endswith(turn.response))
    assert rests == {True, False}, "continuations alone, and with the response behind them"
    assert [e.answer for e in examples([Turn("Hello", "Hi.")])] == [True], "one word cannot be cut"


def test_prompts_are_whole_instructions_or_their_beginnings():
    made = prompts(TURNS * 5, seed=1)
    for turn, prompt in zip(TURNS * 5, made):
        assert turn.instruction.startswith(prompt.text) and prompt.partial == (prompt.text != turn.instruction)
        assert prompt.text == prompt.text.strip() != ""
    assert 0.4 < sum(prompt.partial for prompt in made) / len(made) < 0.6
    assert made == prompts(TURNS * 5, seed=1) != prompts(TURNS * 5, seed=2)
    assert not prompts([Turn("Hello", "Hi.")] * 9)[3].partial


def test_first_turns_of_conversations(tmp_path):
    records = [
        {"messages": [{"role": m, "content": c} for m, c in (("system", "s"), ("user", " q "), ("assistant", "a"))]},
        {"prompt": "p", "completion": "c", "task_type": "kind"},
        {"text": "plain"},
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = first_turns(SourceConfig(path=str(tmp_path / "data.jsonl")))
    assert found == [Turn("q", "a", "data", ""), Turn("p", "c", "data", "kind")]
    (tmp_path / "text.jsonl").write_text('{"text": "plain"}\n')
    with pytest.raises(UserError, match="no conversation that begins with a user's turn"):
        first_turns(SourceConfig(path=str(tmp_path / "text.jsonl")))


def test_the_classifier_learns_reports_and_keeps(tmp_path):
    made = examples(TURNS * 3, seed=0)
    fitted = train_classifier(made, examples(TURNS, seed=5))
    assert fitted.quality["accuracy"] > 0.95 and fitted.quality["texts"] == 80
    said = fitted(["Number 99 is large. It has friends.", "its friends please", "friends please\nNumber 9 is large."])
    assert said == [True, False, False]
    chances = 1 / (1 + np.exp(-fitted.scores([example.text for example in made])))
    at_the_minimum = np.mean([example.answer for example in made])  # where the slope by the bias is zero
    assert np.mean(chances) == pytest.approx(at_the_minimum, abs=1e-3)
    fitted.save(tmp_path / "it.npz")
    again = load_classifier(tmp_path / "it.npz")
    assert again.quality == fitted.quality
    np.testing.assert_array_equal(again.scores(["Hello there", ""]), fitted.scores(["Hello there", ""]))
    with pytest.raises(UserError, match="all are of one kind"):
        train_classifier(made[::2], made)
    whole = (tmp_path / "it.npz").read_bytes()
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", weights=again.weights)
    damaged = whole[:80] + b"x" * 40 + whole[120:]
    (tmp_path / "odd.npz").write_bytes(b"odd"), (tmp_path / "cut.npz").write_bytes(whole[:-30])
    (tmp_path / "damaged.npz").write_bytes(damaged)
    for name in ("odd.npz", "cut.npz", "damaged.npz", "one.npy", "other.npz", "nowhere.npz"):
        with pytest.raises(UserError, match=f"{name} is no classifier of answers"):
            load_classifier(tmp_path / name)
    assert len(features("")) > 0, "an empty answer has features too"


def test_quality_is_counted_right():
    made = examples(TURNS, seed=0)
    turned = [e._replace(answer=not e.answer) for e in made]
    quality = train_classifier(
        made, [*made[:60], *turned[60:]]
    ).quality  # 20 of 80 are told wrong, 10 of them as answers
    assert quality == {"accuracy": 0.75, "precision": 0.75, "recall": 0.75, "texts": 80}


def test_the_heuristic_is_what_it_says():
    assert looks_like_an_answer(["Yes.", " 7", "and so on", "", ", too", "What? No."]) == [True, True] + [False] * 4


def test_when_a_run_may_stop():
    steps = lambda values: list(zip(itertools.count(0, 50), values))
    assert first_stop(steps([0.3, 0.8, 0.95, 0.952, 0.953])) == 200, "rises by 0.003 over the last three"
    assert first_stop(steps([0.91, 0.905, 0.902])) == 100, "a fall is no rise"
    assert first_stop(steps([0.5, 0.5, 0.5, 0.5])) is None, "too low"
    assert first_stop(steps([0.90, 0.905, 0.91, 0.92, 0.95])) is None, "rises by 0.01 and more"
    assert first_stop(steps([0.9, 0.9, 0.9])) == 100, "0.9 is enough"
    assert first_stop(steps([0.5, 0.6, 0.75]), level=0.7, rise=0.25) is None, "the rise itself is too much"
    assert first_stop(steps([0.95, 0.95])) is None, "too few"
    assert first_stop(steps([0.95, 0.95]), last=2) == 50


def test_the_task_on_a_model(tmp_path, mesh):
    """A random model over bytes, judged by a classifier that was trained on something else."""
    decoder, params = make_folder(tmp_path / "model")
    subject = Subject(decoder, load_tokenizer(str(tmp_path / "model")), tmp_path / "model", mesh)
    records = [
        {"prompt": p.text, "partial": p.partial, "task_type": str(i % 2)} for i, p in enumerate(prompts(TURNS[:8]))
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    train_classifier(examples(TURNS), examples(TURNS)).save(tmp_path / "it.npz")
    data = DataConfig(path=str(tmp_path / "prompts.jsonl"), template="plain")
    config = TaskConfig("x", "instruction_following", data, max_new_tokens=4, classifier=str(tmp_path / "it.npz"))
    result = registry.prepare(config, subject).measure(params, None)
    own = load_classifier(tmp_path / "it.npz")([record["answer"] for record in result.records])
    assert [record["correct"] for record in result.records] == own
    assert result.figures["ifs"] == pytest.approx(np.mean(own)) and result.figures["classifier_accuracy"] > 0.9
    assert result.figures.keys() == figures_on_the_page("instruction_following") | {"by_task_type"}
    at = [i for i, record in enumerate(records) if record["partial"]]
    assert result.figures["ifs_partial"] == pytest.approx(np.mean([own[i] for i in at]))
    assert result.figures["by_task_type"]["1"]["ifs"] == pytest.approx(np.mean(own[1::2]))
    assert "ifs 0." in registry.headline(config, result) or "ifs 1." in registry.headline(config, result)
    for record in records:
        record["partial"] = False
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    whole = prepare(config, subject).measure(params, None)
    assert whole.figures["ifs_partial"] is None and "partial undefined" in registry.headline(config, whole)


def test_refusals(tmp_path, mesh):
    decoder, _ = make_folder(tmp_path / "model")
    subject = Subject(decoder, load_tokenizer(str(tmp_path / "model")), tmp_path / "model", mesh)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    data = DataConfig(path=str(tmp_path / "prompts.jsonl"), template="plain")
    ask = lambda **changes: prepare(TaskConfig("x", "instruction_following", data, **changes), subject)
    with pytest.raises(UserError, match=r"config.classifier is empty"):
        ask()
    with pytest.raises(UserError, match=r"prompts.jsonl, line 1: the record needs `prompt`, a text, and `partial`"):
        ask(classifier="heuristic")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "partial": false}\n')
    with pytest.raises(UserError, match=r"config.max_new_tokens is 0, but no reference says"):
        ask(classifier="heuristic")
    data.template = "auto"
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        ask(classifier="heuristic", max_new_tokens=4)
    data.template = "none"
    with pytest.raises(UserError, match="leave no room for a prompt"):
        ask(classifier="heuristic", max_new_tokens=1000)
