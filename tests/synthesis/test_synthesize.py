"""From a config to records: real answers of the world's chat model, resumed, refused, and trained on."""

import json
import runpy
import sys

import numpy as np
import pytest

from jaxsft.config import DataConfig, EvalConfig, ModelConfig, SourceConfig, SynthesisConfig
from jaxsft.data.conversation import parse
from jaxsft.data.dataset import prepare
from jaxsft.data.sources import open_source
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.decoding.prompts import make_prompter
from jaxsft.errors import UserError
from jaxsft.models.checkpoint import resolve
from jaxsft.synthesis.method import Answer, Prompt
from jaxsft.synthesis.registry import METHODS
from jaxsft.synthesis.rows import read_rows
from jaxsft.synthesis.run import MANIFEST, RECORDS, Teacher, encode, synthesize
from jaxsft.training.train import train
from jaxsft.validation import validate
from jaxsft.world.recipe import plain
from tests.conftest import REPOSITORY
from tests.training.conftest import run
from tests.training.test_formats import table


@pytest.fixture
def config():
    made = SynthesisConfig(ModelConfig("world:chat"), data=DataConfig("world:train", rows=":20"), max_new_tokens=24)
    made.self_sample.samples, made.part_rows, made.batch_size = 2, 16, 16
    return made


def records(folder):
    return [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]


def test_records_and_report(config, tmp_path):
    line = synthesize(config, tmp_path / "made")
    report = json.loads((tmp_path / "made" / MANIFEST).read_text())
    written = records(tmp_path / "made")
    assert report["records"] == report["kept"] == len(written) > 0
    assert report["kept"] + sum(report["dropped"].values()) == 40, "every answer is accounted for"
    assert set(report) == set(table("## Written records"))
    assert report["result"] in line and f"{len(written)} kept" in line
    answers = [json.loads(line) for line in (tmp_path / "made" / "answers.jsonl").read_text().splitlines()]
    assert [answer["index"] for answer in answers] == list(range(40))
    for record in written:
        place = record["synthesis"]["row"] * 2 + record["synthesis"]["sample"]
        *_, question, answer = parse(record, "here").messages
        assert (question.content, answer.content) == (
            answers[place]["prompt"][-1]["content"],
            answers[place]["answer"].strip(),
        )
    order = [(record["synthesis"]["row"], record["synthesis"]["sample"]) for record in written]
    assert order == sorted(order)
    before = (tmp_path / "made" / RECORDS).stat().st_mtime_ns
    assert "done before" in synthesize(config, tmp_path / "made")
    assert (tmp_path / "made" / RECORDS).stat().st_mtime_ns == before


def test_an_answer_depends_on_seed_and_row_alone(config, tmp_path):
    """Not on the other rows, the batch or the parts."""
    synthesize(config, tmp_path / "all")
    config.batch_size, config.part_rows = 8, 5
    config.self_sample.forbidden = ("zzz", "what")  # leaves rows out before anything is asked
    synthesize(config, tmp_path / "some")
    texts = lambda name: {
        (r["synthesis"]["row"], r["synthesis"]["sample"]): r["messages"] for r in records(tmp_path / name)
    }
    all_of, some = texts("all"), texts("some")
    assert 0 < len(some) < len(all_of)
    assert all(all_of[key] == messages for key, messages in some.items())
    config.self_sample.forbidden, config.seed = (), 1
    synthesize(config, tmp_path / "other")
    assert texts("other") != all_of


@pytest.mark.parametrize("method", ["self_sample", "self_play"])
def test_prompts_are_those_of_training(config, method, tmp_path):
    """Token for token what stands before the first target, when the records are trained on."""
    config.method, config.self_sample.samples = method, 1
    synthesize(config, tmp_path / "made")
    grouping = "example" if method == "self_sample" else "preference"
    data = DataConfig(str(tmp_path / "made" / RECORDS), cache_dir=str(tmp_path), max_length=128, grouping=grouping)
    tokenizer = load_tokenizer(str(resolve("world:chat")))
    dataset, prompter = prepare(data, tokenizer), make_prompter(tokenizer, "auto", resolve("world:chat"))
    rows = {row.index: row for row in read_rows(config.data)}
    for i, record in zip(range(0, len(dataset), 1 + (method == "self_play")), records(tmp_path / "made")):
        for example in (i,) if method == "self_sample" else (i, i + 1):
            ids, weights, _ = dataset.example(example)
            asked = encode(prompter, Prompt(0, rows[record["synthesis"]["row"]].prompt))
            assert ids[: np.argmax(weights > 0)].tolist() == asked


def test_the_base_under_an_adapter(config, tmp_path):
    """A workdir as teacher, and without its adapter the model that it started from."""
    run_config = plain()
    run_config.model.path, run_config.data.rows, run_config.data.cache_dir = "world:chat", ":64", str(tmp_path)
    run_config.adapter.kind, run_config.adapter.lora.rank, run_config.optimizer.learning_rate = "lora", 4, 0.01
    run_config.batch_size, run_config.steps, run_config.log.tensorboard = 8, 3, False
    run_config.eval, run_config.optimizer.warmup_steps = EvalConfig(), 0
    train(run_config, str(tmp_path / "run"))
    config.self_sample.samples = 1
    synthesize(config, tmp_path / "start")
    config.model.path = str(tmp_path / "run")
    for name, config.adapter in (("with", True), ("without", False)):
        synthesize(config, tmp_path / name)
    lines = lambda name: (tmp_path / name / "answers.jsonl").read_text().splitlines()
    answers = lambda name: [json.loads(line)["answer"] for line in lines(name)]
    assert answers("without") == answers("start") != answers("with")


def test_shipped_configs_are_valid():
    for file in (REPOSITORY / "configs" / "synthesize").glob("*.py"):
        config = runpy.run_path(str(file))["get_config"]()
        validate(config)
        assert config.method == file.stem


def test_the_command(tmp_path):
    """As docs/synthesis.md has it."""
    script = [sys.executable, str(REPOSITORY / "scripts" / "synthesize.py")]
    flags = ["--config.model.path=world:chat", "--config.data.path=world:train", "--config.data.rows=:4"]
    flags += ["--config.max_new_tokens=8", f"--output={tmp_path / 'made'}"]
    done = run([*script, f"--config={REPOSITORY}/configs/synthesize/sdft.py", *flags])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{tmp_path / 'made' / RECORDS}: ")
    assert len(records(tmp_path / "made")) == 4


def test_all_methods_can_be_asked_for(tmp_path, monkeypatch):
    """By name, from records to records, with a teacher whose answers suit them all; their texts as they stand."""
    asked = []

    def say(self, name, prompts):
        asked.append(name)
        return [Answer(f"1. Dogs {name}\u2028{prompt.id}\nStatus: ok\nRating: 5", "token") for prompt in prompts]

    monkeypatch.setattr(Teacher, "ask", say)
    for name in METHODS:
        config = SynthesisConfig(ModelConfig("world:chat"), data=DataConfig("world:train", rows=":6"), method=name)
        config.lamini.lists, config.evol_instruct.rounds = 2, 1
        before = len(asked)
        synthesize(config, tmp_path / name)
        assert len(asked) > before
        assert json.loads((tmp_path / name / MANIFEST).read_text())["kept"] > 0
        source = open_source(SourceConfig(str(tmp_path / name / RECORDS)))
        assert len(list(source.records(0, len(source)))) == len(source) > 0


def test_prompts_may_have_line_ends_of_other_kinds(config, tmp_path):
    record = {"prompt": "please repeat b\u2028c .", "completion": "b\u0085c"}
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    config.data, config.method = DataConfig(str(tmp_path / "in.jsonl")), "sdft"
    assert "records.jsonl: " in synthesize(config, tmp_path / "made")


def test_another_synthesis_is_refused(config, tmp_path):
    synthesize(config, tmp_path / "made")
    config.temperature = 0.5
    with pytest.raises(UserError, match=r"its config\.temperature is 1\.0, now it is 0\.5; choose another output"):
        synthesize(config, tmp_path / "made")
    (tmp_path / "made" / MANIFEST).unlink()  # as if broken off behind the answers
    with pytest.raises(UserError, match=r"of another job: its sampling\.temperature"):
        synthesize(config, tmp_path / "made")


def test_nothing_left_is_said_in_a_sentence(config, tmp_path):
    config.self_sample.forbidden = (" ",)
    said = r"leaves no record of 20: 0 kept, 20 dropped \(a forbidden text in the question 20\)"
    with pytest.raises(UserError, match=said):
        synthesize(config, tmp_path / "made")
    assert not (tmp_path / "made" / MANIFEST).exists()


def test_what_cannot_be_asked_is_refused(config, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "once"}\n')
    (tmp_path / "prompts.jsonl").write_text('{"q": "what is 1 + 1 ?"}\n')
    config.data = DataConfig(str(tmp_path / "text.jsonl"))
    with pytest.raises(UserError, match=r"text\.jsonl, line 1: nothing is asked"):
        synthesize(config, tmp_path / "made")
    config.data = DataConfig(str(tmp_path / "prompts.jsonl"), fields={"q": "prompt"})
    config.self_sample.samples = 1
    synthesize(config, tmp_path / "made")
    assert records(tmp_path / "made")[0]["messages"][0]["content"] == "what is 1 + 1 ?"
    config.adapter = False
    with pytest.raises(UserError, match="world:chat is no adapter"):
        synthesize(config, tmp_path / "other")
    config.model.path = ""
    with pytest.raises(UserError, match=r"config\.model\.path is empty"):
        synthesize(config, tmp_path / "other")
