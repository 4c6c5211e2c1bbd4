"""Every config of a benchmark, over a few rows in the form of its file, on a small model."""

import dataclasses
import json
import runpy

import jax
import pytest

from jaxsft.config import DataConfig, EvaluateConfig, MeshConfig, SuiteConfig, TaskConfig
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation import registry, suite
from jaxsft.evaluation.answers import judges
from jaxsft.evaluation.task import Subject
from jaxsft.sharding import make_mesh
from jaxsft.validation import validate
from tests.conftest import REPOSITORY
from tests.evaluation.folders import make_folder

OPTIONS = ["(A)", "(B)", "(C)", "(D)"]
ROWS = {
    "mmlu": [{"subject": "law", "question": "Who?\n(A) I (B) you (C) he (D) she", "options": OPTIONS, "label": "(B)"}],
    "arc": [{"question": "Who?", "choices": {"text": ["he", "everybody"], "label": ["1", "2"]}, "answerKey": "2"}],
    "truthfulqa": [{"question": "?", "mc1_targets": {"no": 1, "yes": 0}, "mc2_targets": {"no": 1, "nay": 1, "yes": 0}}],
    "agieval": [{"passage": "P.", "question": "Who?", "options": ["(A)I", "(B)you"], "label": "A", "answer": None}],
    "nq_open": [{"question": "who", "answer": ["me", "I"]}],
    "triviaqa": [{"question": "Who?", "answer": "me; I"}, {"question": "?", "answer": {"value": "x", "aliases": []}}],
    "gsm8k": [{"question": "1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}],
    "competition_math": [{"problem": "1 + 1?", "solution": "It is $\\boxed{2}$."}],
    "bbh": [{"input": "True?", "target": "False"}],
    "translation": [{"translation": {"de": "Hund", "en": "dog"}}],
}  # fmt: skip
CONFIGS = REPOSITORY / "configs" / "eval"


def config_of(name, path):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](str(path))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bytes"
    decoder, params = make_folder(folder, max_position_embeddings=1024)
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    return Subject(decoder, load_tokenizer(str(folder)), folder, mesh, name="bytes"), params


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("template", ["none", "chatml"])
def test_benchmark(model, tmp_path, name, template):
    if name == "translation":
        pytest.importorskip("sacrebleu", reason="sacrebleu is not installed; pip install 'jaxsft[eval]'")
    config = config_of(name, write(tmp_path / "rows.jsonl", ROWS[name]))
    validate(config)
    tasks = config.tasks if isinstance(config, SuiteConfig) else [config]
    for task in tasks:
        assert task.data.template == "auto" and task.data.max_length == 1_000_000
        task.max_new_tokens = min(task.max_new_tokens, 4)
        result = registry.prepare(task, model[0], template).measure(model[1], None)
        registry.headline(task, result)
        assert result.figures["questions"] == len(ROWS[name]) == len(result.records)
        assert result.figures["cut"] == 0
        if task.task == "multiple_choice":
            assert result.figures["chance"] == pytest.approx(
                {"mmlu": 1 / 4, "mc2": 2 / 3}.get(task.name or name, 1 / 2)
            )


def test_several_benchmarks(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS["mmlu"])
    config = config_of("benchmarks", f"mmlu={path},truthfulqa={path},gsm8k={path}")
    assert [task.name for task in config.tasks] == ["mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "gsm8k"]
    assert {type(task) for task in config.tasks} == {TaskConfig} and config.tasks[0].choices == "letters"
    validate(config)
    for bad in ("mmul=x", "mmlu"):
        with pytest.raises(UserError, match="is no benchmark; write NAME=FILE"):
            config_of("benchmarks", bad)


MT_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Write again."]},
    {"question_id": 82, "category": "math", "turns": ["Count."]},
    {"question_id": 83, "category": "math", "turns": ["Add.", "Multiply."]},
]


def answered(model, tmp_path, judge, rows, **config):
    data = DataConfig(path=str(write(tmp_path / "asked.jsonl", rows)), template="plain", max_length=1_000_000)
    task = TaskConfig("a", "answers", data=data, judge=judge, max_new_tokens=5, **config)
    return judges.prepare(task, model[0]).measure(model[1], None)


def test_answers_turn_by_turn(model, tmp_path):
    """The second turn is asked behind the model's own first answer, whoever else is asked."""
    result = answered(model, tmp_path, "mt_bench", MT_BENCH)
    assert {"questions": 3, "turns": 5, "cut": 0}.items() <= result.figures.items() and result.records == []
    suffix, text = result.files["mt_bench"]
    lines = [json.loads(line) for line in text.splitlines()]
    assert suffix == ".jsonl"
    assert [list(line) for line in lines] == [["question_id", "answer_id", "model_id", "choices"]] * 3
    assert [line["question_id"] for line in lines] == [81, 82, 83] and {line["model_id"] for line in lines} == {"bytes"}
    turns = [line["choices"][0]["turns"] for line in lines]
    assert [len(own) for own in turns] == [2, 1, 2] and lines[0]["choices"][0]["index"] == 0
    history = {"role": "user", "content": "Write."}, {"role": "assistant", "content": turns[0][0]}
    data = [
        {"messages": [*history, {"role": "user", "content": "Write again."}, {"role": "assistant", "content": "?"}]}
    ]
    path = str(write(tmp_path / "history.jsonl", data))
    task = TaskConfig(
        "b", "generation", DataConfig(path=path, template="plain", max_length=1_000_000), max_new_tokens=5
    )
    (record,) = registry.prepare(task, model[0]).measure(model[1], None).records
    assert record["answer"] == turns[0][1]
    alone = json.loads(answered(model, tmp_path, "mt_bench", MT_BENCH[2:]).files["mt_bench"][1])
    assert alone["choices"] == lines[2]["choices"] and alone["answer_id"] == lines[2]["answer_id"]


def test_temperatures_are_those_of_the_category(model, tmp_path):
    turns = lambda found: [json.loads(line)["choices"][0]["turns"] for line in found.files["mt_bench"][1].splitlines()]
    asked = lambda of: turns(answered(model, tmp_path, "mt_bench", MT_BENCH, temperatures=of))
    cold, warm, again = map(asked, ({}, {"writing": 9.0}, {"writing": 9.0}))
    assert warm == again and warm[1:] == cold[1:] and warm[0] != cold[0]


def test_answers_for_alpaca_eval(model, tmp_path):
    rows = [{"dataset": "helpful", "instruction": "Say it.", "output": "of another", "generator": "other"}]
    suffix, text = answered(model, tmp_path, "alpaca_eval", rows).files["alpaca_eval"]
    (found,) = json.loads(text)
    assert suffix == ".json" and list(found) == ["dataset", "instruction", "output", "generator"]
    assert found["generator"] == "bytes" and found["instruction"] == "Say it." and found["output"] != "of another"


def test_answers_end_at_a_mark_of_several_tokens(model, tmp_path, monkeypatch):
    """What a model goes on with behind its end of turn is neither in its answer nor counted."""
    rows = [{"instruction": "Say it."}]
    whole = answered(model, tmp_path, "alpaca_eval", rows)
    text = json.loads(whole.files["alpaca_eval"][1])[0]["output"]
    assert whole.figures["tokens"] == 5 and whole.figures["ended"] == 0 and len(text) > 3
    chosen, mark = judges.chosen_prompter, text[1:3]
    monkeypatch.setattr(judges, "chosen_prompter", lambda *a, **k: dataclasses.replace(chosen(*a, **k), stop_text=mark))
    ended = answered(model, tmp_path, "alpaca_eval", rows)
    assert json.loads(ended.files["alpaca_eval"][1])[0]["output"] == text[: text.find(mark)]
    assert ended.figures["tokens"] < 5 and ended.figures["ended"] == 1


def test_answers_are_written_beside_the_figures(model, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "make_mesh", lambda config: model[0].mesh)
    asked = write(tmp_path / "asked.jsonl", MT_BENCH[:1])
    config = config_of("mt_bench", asked)
    assert config.temperatures["writing"] == 0.7
    config.model.path, config.data.template, config.max_new_tokens = str(model[0].source), "plain", 3
    found = suite.evaluate(config)
    assert found.write(tmp_path / "out.json") is None
    line = json.loads((tmp_path / "out.answers.mt_bench.jsonl").read_text())
    assert line["model_id"] == "bytes" and len(line["choices"][0]["turns"]) == 2
    assert isinstance(config_of("alpaca_eval", asked), EvaluateConfig)


@pytest.mark.parametrize(
    ("judge", "row", "message"),
    [
        ("mt_bench", {"question_id": 1, "turns": []}, "line 1: a question of MT-Bench"),
        ("mt_bench", {"turns": ["x"]}, "line 1: a question of MT-Bench"),
        ("alpaca_eval", {"instruction": " "}, "line 1: a question of AlpacaEval"),
        ("alpaca_eval", "x", "line 1: a question of AlpacaEval"),
    ],
)
def test_judges_refuse(model, tmp_path, judge, row, message):
    with pytest.raises(UserError, match=message):
        answered(model, tmp_path, judge, [row])


def test_judges_need_a_template(model, tmp_path):
    data = DataConfig(path=str(write(tmp_path / "asked.jsonl", MT_BENCH)), template="none")
    with pytest.raises(UserError, match="the task 'answers' needs a chat template"):
        judges.prepare(TaskConfig("a", "answers", data=data), model[0])
