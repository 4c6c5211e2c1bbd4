"""Recipes: what is checked before anything is done, what is done once, and what a kill leaves."""

import json
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxsft.config import (
    DataConfig,
    ModelConfig,
    PromptConfig,
    RecipeConfig,
    ScoreConfig,
    ShotsConfig,
    StageConfig,
    SuiteConfig,
    TaskConfig,
    TrainConfig,
)
from jaxsft.errors import UserError
from jaxsft.objectives.registry import make_objective
from jaxsft.objectives.sft import SFT
from jaxsft.recipes.plan import plan
from jaxsft.recipes.run import run
from tests.conftest import REPOSITORY
from tests.training.conftest import data_file, environment, lines, model_folder
from tests.training.conftest import run as run_process

__all__ = ["data_file", "model_folder"]  # fixtures

RECIPE = """
from jaxsft.config import *

DATA = dict(template="plain", max_length=128, cache_dir="CACHE")


def get_config():
    train = TrainConfig(data=DataConfig("DATA_FILE", **DATA), batch_size=8, steps=6)
    train.model.path = "MODEL"
    train.optimizer.learning_rate = 1e-2
    train.log.tensorboard = False
    reference = {"steps": 4, "checkpoint.snapshots": 2, "checkpoint.every": 1}
    target = {"objective.name": "sftmix", "data.grouping": "mixup", "data.scores": "{scores}/scores.parquet"}
    task = TaskConfig("likelihood", "perplexity", DataConfig("DATA_FILE", **DATA))
    return RecipeConfig(train, [
        StageConfig("reference", changes=reference),
        StageConfig("scores", "score", ScoreConfig(ModelConfig("{reference}"), grouping="mixup", batch_size=8)),
        StageConfig("target", changes=target | {"checkpoint.every": 1}),
        StageConfig("figures", "evaluate", SuiteConfig([task], ModelConfig("{target}"))),
    ])
"""


@pytest.fixture(scope="module")
def command(model_folder, data_file, tmp_path_factory):
    """`command(workdir, *overrides)` runs a recipe of four stages."""
    folder = tmp_path_factory.mktemp("recipe")
    text = RECIPE.replace("CACHE", str(folder / "cache")).replace("MODEL", str(model_folder))
    (folder / "recipe.py").write_text(text.replace("DATA_FILE", str(data_file)))

    def build(workdir: Path, *overrides: str) -> list[str]:
        script = [sys.executable, str(REPOSITORY / "scripts" / "run.py")]
        return [*script, f"--config={folder}/recipe.py", f"--workdir={workdir}", *overrides]

    return build


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """The workdir of a recipe that nothing disturbed, and what it printed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "work"
    done = run_process(command(workdir))
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def results(workdir: Path) -> list:
    """All that the stages leave, but for times."""
    figures = json.loads((workdir / "figures" / "evaluation.json").read_text())["tasks"]
    table = (workdir / "scores" / "scores.parquet").read_bytes()
    prints = [json.loads((workdir / name / "stage.json").read_text())["config"] for name in ("reference", "target")]
    return [lines(workdir / "reference"), lines(workdir / "target"), figures, len(table), prints]


def test_stages_are_done_in_order_and_once(finished, command):
    workdir, printed = finished
    begun = [line for line in printed.splitlines() if line.startswith(("1/", "2/", "3/", "4/", "-- ")) and ": " in line]
    assert begun[:4] == [
        "1/4 reference: train (to do)",
        "2/4 scores: score, reads reference (to do)",
        "3/4 target: train, reads scores (to do)",
        "4/4 figures: evaluate, reads target (to do)",
    ]
    assert printed.splitlines()[-1].startswith(f"{workdir}: 4 stages; figures: likelihood: nll_per_token ")
    record = json.loads((workdir / "target" / "stage.json").read_text())
    assert record["kind"] == "train" and record["config"]["data"]["scores"] == "{scores}/scores.parquet"
    scores = json.loads((workdir / "scores" / "stage.json").read_text())
    assert record["inputs"] == {"scores": scores["fingerprint"]}
    assert any(line["mixture"] > 0 for line in lines(workdir / "target"))

    before = {file: file.stat().st_mtime_ns for file in workdir.rglob("*") if file.is_file()}
    again = run_process(command(workdir))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("(done)") == 4 and "-- " not in again.stdout
    assert again.stdout.splitlines()[-1] == printed.splitlines()[-1]
    assert {
        file: file.stat().st_mtime_ns for file in workdir.rglob("*") if file.is_file() and file.name != ".lock"
    } == {file: when for file, when in before.items() if file.name != ".lock"}


def wait_for(file: Path, text: bytes, process: subprocess.Popen) -> None:
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 120:
        if file.exists() and text in file.read_bytes():
            return
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("file", "text", "how"),
    [
        ("reference/metrics.jsonl", b'"step": 2', signal.SIGKILL),
        ("scores/nll_2.parquet", b"PAR1", signal.SIGKILL),
        pytest.param("reference/stage.json", b"fingerprint", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("target/metrics.jsonl", b'"step": 3', signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("target/summary.json", b"steps", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_what_was_killed_goes_on_to_the_same_result(finished, command, tmp_path, file, text, how):
    workdir = tmp_path / "work"
    early = file.split("/")[0]
    for name in ("reference", "scores", "target"):  # what comes before the stage under test is there
        if name == early:
            break
        shutil.copytree(finished[0] / name, workdir / name)
    process = subprocess.Popen(
        command(workdir), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    wait_for(workdir / file, text, process)
    process.send_signal(how)
    process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 143)
    assert not (workdir / "figures" / "stage.json").exists()
    again = run_process(command(workdir))
    assert again.returncode == 0, again.stderr
    assert "(done)" in again.stdout or "(begun)" in again.stdout
    assert results(workdir) == results(finished[0])


def test_another_config_or_input_is_refused(finished, command, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(finished[0], workdir)
    before = results(workdir)
    other = run_process(command(workdir, "--config.train.optimizer.b2=0.9"))
    assert other.returncode == 1 and other.stderr.count("\n") == 1
    assert "the stage 'reference'" in other.stderr and "config.optimizer.b2 = 0.999, now it is 0.9" in other.stderr
    other = run_process(command(workdir, "--config.stages[1].config.grouping=example"))
    assert "the stage 'scores'" in other.stderr and "config.grouping = 'mixup', now it is 'example'" in other.stderr
    free = run_process(command(workdir, "--config.train.checkpoint.keep_latest=3", "--config.train.mesh.fsdp=1"))
    assert free.returncode == 0, free.stderr

    record = json.loads((workdir / "scores" / "stage.json").read_text())
    (workdir / "scores" / "stage.json").write_text(json.dumps(record | {"fingerprint": "other"}))
    other = run_process(command(workdir))
    assert other.returncode == 1
    assert "the stage 'target'" in other.stderr and "another 'scores'" in other.stderr
    (workdir / "scores" / "stage.json").write_text(json.dumps(record))
    assert results(workdir) == before


def test_a_live_recipe_is_left_alone(command, tmp_path):
    arguments = command(tmp_path / "work", "--config.train.log.every=1")
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(tmp_path / "work" / "reference" / "metrics.jsonl", b'"step": 1', process)
        second = run_process(arguments)
    finally:
        process.kill()
        process.wait()
    assert second.returncode == 1 and "in use by a live run" in second.stderr


def stages(*of: StageConfig) -> RecipeConfig:
    return RecipeConfig(TrainConfig(data=DataConfig("a.jsonl")), list(of))


SCORE = StageConfig("scores", "score", ScoreConfig(ModelConfig("{reference}")))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (stages(), r"config\.stages is empty"),
        (stages(StageConfig("a b")), r"config\.stages\[0\]\.name is 'a b'"),
        (stages(StageConfig("a"), StageConfig("a")), r"config\.stages\[1\]\.name is 'a', which an earlier"),
        (stages(StageConfig("a", "trian")), r"config\.stages\[0\]\.kind is 'trian'; did you mean 'train'\?"),
        (stages(StageConfig("a", "score")), r"config is a NoneType; a stage of the kind 'score' takes a ScoreConfig"),
        (stages(StageConfig("a", "train", SuiteConfig())), r"is a SuiteConfig; .* takes a TrainConfig"),
        (
            stages(StageConfig("a", changes={"optimizer.learning_rte": 1.0})),
            r"stages\[0\]\.changes names 'optimizer\.learning_rte', but .*did you mean 'learning_rate'",
        ),
        (stages(StageConfig("a", changes={"steps.more": 1})), r"'more' is no field"),
        (stages(StageConfig("a", changes={"steps": "many"})), r"stages\[0\]\.config\.steps is 'many' \(str\)"),
        (
            stages(StageConfig("refrence"), SCORE),
            r"stages\[1\]\.config refers to \{reference\}, which is no stage; did you mean 'refrence'\?",
        ),
        (
            stages(SCORE, StageConfig("reference")),
            r"stages\[0\]\.config refers to \{reference\}, which is not done before it; before 'scores' come: none",
        ),
        (stages(StageConfig("a", changes={"data.scores": "{a}/x"})), r"refers to \{a\}, which is not done before it"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(recipe, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run(recipe, str(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_changes_stay_in_their_stage(tmp_path):
    recipe = stages(
        StageConfig("reference", changes={"optimizer.learning_rate": 0.5, "data.fields": {"q": "prompt"}}), SCORE
    )
    first, second = plan(recipe, tmp_path)
    assert first.config.optimizer.learning_rate == 0.5 and first.config.data.fields == {"q": "prompt"}
    assert recipe.train.optimizer.learning_rate == TrainConfig().optimizer.learning_rate
    assert second.inputs == ("reference",) and second.resolved().model.path == str(tmp_path / "reference")
    assert second.config.model.path == "{reference}" and first.inputs == ()


def test_a_runs_own_folder_is_no_place_for_a_recipe(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run or a model"):
        run(stages(StageConfig("a")), str(tmp_path))


def test_the_reference_run_of_the_world_is_plain_whatever_the_target_is(monkeypatch):
    planned = []
    monkeypatch.setattr("jaxsft.recipes.run.run", lambda recipe, workdir: planned.extend(plan(recipe, workdir)))
    monkeypatch.setattr("jaxsft.training.train.train", lambda config, workdir: workdir)
    case = runpy.run_path(str(REPOSITORY / "configs" / "world" / "sftmix.py"))
    config = case["get_config"]()
    config.objective.mu, config.objective.lambda_scope = 0.5, "token"
    assert case["run"](config, "somewhere") == "somewhere"
    assert make_objective(planned[0].config.objective) == SFT()


def test_braces_of_a_prompt_are_no_stages(tmp_path):
    """Only what names a file or a model may refer to an earlier stage."""
    prompt = PromptConfig(question="Q: {question}", preamble="On {subject}.", shots=ShotsConfig(1, "{first}/x.jsonl"))
    suite = SuiteConfig([TaskConfig("it", "generation", prompt=prompt)], ModelConfig("{first}"))
    stages = plan(RecipeConfig(stages=[StageConfig("first"), StageConfig("second", "evaluate", suite)]), tmp_path)
    asked = stages[1].resolved().tasks[0].prompt
    assert (asked.question, asked.preamble) == ("Q: {question}", "On {subject}.")
    assert asked.shots.path == f"{tmp_path}/first/x.jsonl" and stages[1].inputs == ("first",)
