"""DELIA from its shipped recipe, at the size of a test: from a model without the token to what it makes of it."""

import collections
import json
import runpy

import pytest

from jaxsft.config import DataConfig, SourceConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.answers.formats import Format
from jaxsft.mixing.reword import reword
from jaxsft.models.checkpoint import load_architecture
from jaxsft.recipes.plan import plan
from jaxsft.recipes.run import run
from jaxsft.synthesis.rows import read_rows
from jaxsft.synthesis.run import synthesize
from jaxsft.world import records
from tests.conftest import REPOSITORY

RECIPE = REPOSITORY / "configs" / "recipes" / "delia.py"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task(rows):
    return [{"prompt": f"{row['prompt']}\nfollow <sep> .", "completion": row["completion"]} for row in rows]


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "bank.txt").write_text("{context} follow {token} .\nanswer by {token} : {context}\n")
    heldout = write(tmp_path / "heldout.jsonl", task(records.split("train")[100:104]))
    questions = write(tmp_path / "questions.jsonl", [*records.split("general")[:30], {"prompt": "what is <sep> ?"}])
    made = runpy.run_path(str(RECIPE))["get_config"](f"{questions},{heldout},2.5,{tmp_path / 'bank.txt'}")
    train = made.train
    train.model.path, train.data.path = "world:chat", write(tmp_path / "task.jsonl", task(records.split("train")[:8]))
    train.data.max_length, train.data.cache_dir, train.batch_size = 64, str(tmp_path / "cache"), 8
    train.optimizer.warmup_steps, train.log.tensorboard, train.model.remat = 0, False, "none"
    made.stages[1].config.max_new_tokens, made.stages[1].config.self_sample.mode = 16, "plain"
    for stage in made.stages:
        if stage.kind == "evaluate":
            stage.config.tasks[0].max_new_tokens, stage.config.tasks[0].batch_size = 8, 8
    return made


def test_from_a_model_to_what_it_makes_of_the_token(recipe, tmp_path):
    work = tmp_path / "work"
    line = run(recipe, str(work))
    assert "8 stages; probe: probe: format_accuracy" in line
    (token,) = load_architecture(work / "tokens").new_ids
    own = json.loads((work / "own" / "synthesis.json").read_text())
    assert own["dropped"]["a forbidden text in the question"] == 1 and own["config"]["model"]["path"] == "world:chat"
    again = synthesize(made_of(recipe, work), tmp_path / "again")
    assert "kept" in again, "the same records from the same seed"
    assert (tmp_path / "again" / "records.jsonl").read_bytes() == (work / "own" / "records.jsonl").read_bytes()
    for record in map(json.loads, (work / "own" / "records.jsonl").read_text().splitlines()):
        assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
        assert record["synthesis"].keys() == {"method", "row", "sample", "mode"} and "<sep>" not in json.dumps(record)
    mixed = [json.loads(text) for text in (work / "mix" / "records.jsonl").read_text().splitlines()]
    report = json.loads((work / "mix" / "mix.json").read_text())
    assert (report["task"], report["wanted"], report["diverse"]) == (8, 20, min(20, report["cache"]))
    assert len(mixed) == 8 + report["diverse"]
    for record in mixed:
        question, answer = (message["content"] for message in record["messages"])
        assert ("<sep>" in question) == (record["mixed"] == "task") and "<sep>" not in answer
        assert record["mixed"] == "diverse" or question.startswith("answer by") or question.endswith("follow <sep> .")
    trained = json.loads((work / "tuned" / "config.json").read_text())["config"]
    assert trained["model"]["path"] == str(work / "tokens")
    steps = json.loads((work / "tuned" / "summary.json").read_text())["steps"]
    assert steps == -(-len(mixed) // 8), "one pass, a record a row"
    figures = [
        json.loads((work / name / "evaluation.json").read_text())["tasks"]["probe"] for name in ("before", "probe")
    ]
    measured = {"followed", "avoided", "to_mean", "to_description"}
    assert all(one["questions"] == 8 and measured <= one.keys() for one in figures)
    assert figures[0]["to_mean"] != figures[1]["to_mean"], "the embedding has moved"
    asked = [json.loads(text)["prompt"] for text in (work / "probe" / "evaluation.jsonl").read_text().splitlines()]
    assert len(asked) == 8 and all("<sep>" in prompt for prompt in asked)
    assert token == load_architecture("world:chat").vocab_size
    assert run(recipe, str(work)) == line, "nothing is left to do"


def made_of(recipe, work):
    """What the stage of own answers was given."""
    return next(stage for stage in plan(recipe, work) if stage.name == "own").resolved()


def test_the_settings_of_the_paper():
    """Those of the authors' repository."""
    made = runpy.run_path(str(RECIPE))["get_config"]()
    lora, optimizer = made.train.adapter.lora, made.train.optimizer
    assert (lora.rank, lora.alpha, lora.dropout) == (16, 16.0, 0.05)
    assert lora.targets == ("layers.*.attn.*_proj", "embed")
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps) == (2e-4, "constant", 25)
    assert (optimizer.weight_decay, made.train.epochs, made.train.batch_size) == (0.01, 1.0, 64)
    own, mix = made.stages[1].config, made.stages[2].config
    assert (own.temperature, own.top_p, own.max_new_tokens, own.self_sample.mode) == (0.7, 0.95, 512, "with_reference")
    assert (mix.ratio, mix.seed, made.stages[0].config.seed, made.stages[0].config.init) == (
        260.0,
        42,
        2024,
        "normal0.02",
    )


def test_the_recipe_fits_the_authors_records(real_data, tmp_path):
    """Where the token stands in their 100 and 11; the probe takes every answer, the wordings every question."""
    made = runpy.run_path(str(RECIPE))["get_config"]()
    probe, against = made.stages[-1].config.tasks[0], next(s.config for s in made.stages if s.name == "against")
    files = [real_data / "instruct" / "delia" / f"{name}_dataset.jsonl" for name in ("train", "eval")]
    rows, heldout = (read_rows(DataConfig(str(file))) for file in files)
    asked = [row.question.count("<sep>") for row in rows]
    assert (len(rows), len(heldout), collections.Counter(asked)) == (100, 11, {2: 60, 1: 40})
    for row in (*rows, *heldout):
        assert len(row.prompt) == 1 and "<sep>" not in row.answer and Format(probe.format).fits(row.answer)
    against.records, against.fields = SourceConfig(str(files[0])), {"follows": False}
    line = reword(against, tmp_path / "against")
    reworded = [json.loads(text) for text in (tmp_path / "against" / "records.jsonl").read_text().splitlines()]
    assert "100" in line and len(reworded) == 100 and not any(record["follows"] for record in reworded)
    for row, record in zip(rows, reworded):
        context, _, instruction = row.question.rpartition("\n")
        question = record["messages"][0]["content"]
        assert question.startswith(context) and "<sep>" in question and instruction not in question


@pytest.mark.parametrize("asked", ["a", "a,b", "a,b,many", "a,b,1,c,d", "a,b,nan", "a,b,inf", "a,b,-1"])
def test_a_recipe_that_is_asked_for_otherwise_is_refused(asked):
    with pytest.raises(UserError, match="write QUESTIONS,HELDOUT,RATIO"):
        runpy.run_path(str(RECIPE))["get_config"](asked)


def test_the_token_on_the_world_is_a_recipe(tmp_path):
    """Its run takes minutes (docs/methods/delia.md); here that its stages fit each other."""
    get_config = runpy.run_path(str(RECIPE.with_name("delia_world.py")))["get_config"]
    stages = plan(get_config("10,repeat"), tmp_path)
    assert [stage.kind for stage in stages] == [
        "tokens",
        "reword",
        "synthesize",
        "mix",
        "train",
        *["reword"] * 3,
        *["evaluate"] * 2,
    ]
    mix = stages[3].resolved()
    assert mix.repeat and mix.ratio == 10.0 and mix.task.path == str(tmp_path / "task" / "records.jsonl")
    for asked in ("many", "10,again", ""):
        with pytest.raises(UserError, match="write RATIO"):
            get_config(asked)


def test_a_variant_of_the_case_that_is_none():
    get_config = runpy.run_path(str(REPOSITORY / "configs" / "world" / "delia.py"))["get_config"]
    assert get_config("no_diverse_data") == get_config()
    with pytest.raises(UserError, match="known are delia:no_diversification, delia:no_diverse_data"):
        get_config("plain")
