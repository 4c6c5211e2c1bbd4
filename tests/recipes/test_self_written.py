"""SDFT and SPIN from their shipped recipes: what each stage reads of the others, and a synthesis that is killed."""

import json
import runpy
import signal
import subprocess
import sys
import time

import pytest

from jaxsft.config import ModelConfig
from jaxsft.decoding.job import weights_digest
from jaxsft.errors import UserError
from jaxsft.objectives.registry import make_objective
from jaxsft.objectives.sft import SFT
from jaxsft.recipes.plan import plan
from jaxsft.recipes.run import run
from jaxsft.sharding import make_mesh
from jaxsft.training.restore import open_model
from tests.conftest import REPOSITORY
from tests.training.conftest import environment, lines
from tests.training.conftest import run as run_process

RECIPES = REPOSITORY / "configs" / "recipes"


def shipped(name, asked, tmp_path):
    """A recipe at the size of a test, on the world."""
    recipe = runpy.run_path(str(RECIPES / f"{name}.py"))["get_config"](asked)
    train = recipe.train
    train.model.path, train.data.path, train.data.rows = "world:chat", "world:train", ":40"
    train.data.max_length, train.data.max_examples_per_row, train.data.cache_dir = 128, 8, str(tmp_path / "cache")
    train.batch_size, train.steps, train.log.tensorboard, train.log.every = 8, 2, False, 1
    train.model.remat = "none"
    for stage in recipe.stages:
        if stage.kind == "synthesize":
            stage.config.max_new_tokens, stage.config.batch_size = 24, 40
    return recipe


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_sdft(tmp_path):
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text('{"prompt": "what is the hobby of vipo modas ?", "completion": "knitting"}\n')
    recipe, work = shipped("sdft", str(heldout), tmp_path), tmp_path / "work"
    recipe.stages[0].config.sdft.template = "earlier_answer"
    for task in recipe.stages[2].config.tasks:
        task.data.cache_dir = str(tmp_path / "cache")
    line = run(recipe, str(work))
    assert "3 stages; figures: likelihood: nll_per_token" in line and "; moved: " in line
    assert len(records(work / "distilled")) == 40
    report = json.loads((work / "distilled" / "synthesis.json").read_text())
    assert report["kept"] + sum(report["fell back"].values()) == 40 and report["kept"] > 0
    assert report["config"]["data"]["path"] == "world:train" and report["config"]["model"]["path"] == "world:chat"
    trained = json.loads((work / "tuned" / "config.json").read_text())["config"]
    assert trained["data"]["path"] == str(work / "distilled" / "records.jsonl") and trained["data"]["rows"] == ""
    assert run(recipe, str(work)) == line, "nothing is left to do"


def test_spin(tmp_path):
    recipe, work = shipped("spin", "2,1e-3", tmp_path), tmp_path / "work"
    recipe.train.optimizer.warmup_ratio = 0.0
    run(recipe, str(work))
    configs = [json.loads((work / f"run_{t}" / "config.json").read_text())["config"] for t in range(2)]
    assert [config["model"]["path"] for config in configs] == ["world:chat", str(work / "iterate_0")]
    reads = [[source["path"] for source in config["data"]["sources"]] for config in configs]
    pairs = [str(work / f"pairs_{t}" / "records.jsonl") for t in range(2)]
    assert reads == [pairs[:1], pairs]
    for t in range(2):
        begin, *_, end = [line for line in lines(work / f"run_{t}") if "loss" in line]
        assert begin["loss"] == pytest.approx(0.6931472, abs=1e-5), "held to where it starts"
        assert abs(end["rewards/margins"]) > 1e-3
    mesh, exact = make_mesh(recipe.train.mesh), ModelConfig(dtype="float32", param_dtype="float32")
    digests = [
        weights_digest(open_model(str(model), exact, mesh).params)
        for model in ("world:chat", work / "run_0", work / "iterate_0", work / "run_1", work / "iterate_1")
    ]
    assert digests[1] == digests[2] and digests[3] == digests[4] and len(set(digests)) == 3
    given = {record["messages"][-1]["content"] for record in _given()}
    first, second = (records(work / f"pairs_{t}") for t in range(2))
    assert all(record["chosen"][0]["content"] in given for record in [*first, *second])
    rejected = [{r["synthesis"]["row"]: r["rejected"][0]["content"] for r in own} for own in (first, second)]
    assert any(rejected[0].get(row) != text for row, text in rejected[1].items()), "another model has answered"


def _given():
    from jaxsft.config import DataConfig
    from jaxsft.synthesis.rows import read_rows

    return [row.unchanged() for row in read_rows(DataConfig("world:train", rows=":40"))]


def test_the_settings_of_the_paper():
    """Two rates, and beta 5 in the last iteration."""
    recipe = runpy.run_path(str(RECIPES / "spin.py"))["get_config"]("4,5e-7")
    runs = [stage.changes for stage in recipe.stages if stage.kind == "train"]
    assert [run["objective.beta"] for run in runs] == [0.1, 0.1, 0.1, 5.0]
    assert [run["optimizer.learning_rate"] for run in runs] == pytest.approx([5e-7, 5e-7, 1e-7, 1e-7])
    read = [[source.path for source in run["data.sources"]] for run in runs]
    pairs = [f"{{pairs_{t}}}/records.jsonl" for t in range(4)]
    assert read == [pairs[:1], pairs[:2], pairs[1:3], pairs[2:]]
    before = [f"{{iterate_{t}}}" for t in range(3)]
    assert [run.get("model.path") for run in runs] == [None, *before], "from the iterate before, its reference"
    assert [stage.config.model.path for stage in recipe.stages if stage.kind == "synthesize"] == ["", *before]
    assert [stage.config.model for stage in recipe.stages if stage.kind == "export"] == [
        f"{{run_{t}}}" for t in range(4)
    ]


@pytest.mark.parametrize("asked", ["4", "5,1e-6", "0,1e-6", "2,fast", "2,1.2.3", "2,1e-6,more"])
def test_a_recipe_that_is_asked_for_otherwise_is_refused(asked):
    with pytest.raises(UserError, match="write ITERATIONS,LEARNING_RATE"):
        runpy.run_path(str(RECIPES / "spin.py"))["get_config"](asked)


@pytest.mark.parametrize("variant", ["tuned", "direct"])
def test_spin_on_the_world(variant, monkeypatch):
    """From fine-tuning, or from the start itself, each iteration from the one before."""
    planned = []
    monkeypatch.setattr("jaxsft.recipes.run.run", lambda recipe, workdir: planned.extend(plan(recipe, workdir)))
    case = runpy.run_path(str(REPOSITORY / "configs" / "world" / "spin.py"))
    config = case["get_config"](variant)
    config.optimizer.learning_rate, config.seed = 1e-5, 2
    left = case["run"](config, "somewhere", variant)
    assert left.name == "iterate_1" and planned[-1].name == "iterate_1"
    stages = {stage.name: stage.config for stage in planned}
    start = "{start}" if variant == "tuned" else "world:chat"
    assert [stages[f"run_{t}"].model.path for t in range(2)] == [start, "{iterate_0}"]
    assert [stages[f"pairs_{t}"].model.path for t in range(2)] == [start, "{iterate_0}"]
    assert [stages[f"pairs_{t}"].seed for t in range(2)] == [4, 5]
    assert all(stages[f"run_{t}"].optimizer.learning_rate == 1e-5 for t in range(2))
    if variant == "tuned":
        tuning = stages["sft"]
        assert (tuning.optimizer.learning_rate, tuning.epochs) == (case["SFT_RATE"], 4.0)
        assert make_objective(tuning.objective) == SFT()
    else:
        assert "sft" not in stages
    with pytest.raises(UserError, match="write one of spin:tuned, spin:direct"):
        case["get_config"]("twice")


RECIPE = """
import runpy


def get_config():
    recipe = runpy.run_path("SHIPPED")["get_config"]()
    recipe.stages = recipe.stages[:1]
    recipe.train.model.path, recipe.train.data.path, recipe.train.data.rows = "world:chat", "world:train", ":40"
    own = recipe.stages[0].config
    own.sdft.template, own.max_new_tokens, own.part_rows = "earlier_answer", 24, 2
    return recipe
"""


def test_a_killed_synthesis_goes_on_to_the_same_bytes(tmp_path):
    """SIGKILL in the middle of the answers, and the same command again: the files of an undisturbed recipe."""
    (tmp_path / "recipe.py").write_text(RECIPE.replace("SHIPPED", str(RECIPES / "sdft.py")))
    script = [sys.executable, str(REPOSITORY / "scripts" / "run.py"), f"--config={tmp_path}/recipe.py"]
    command = lambda name: [*script, f"--workdir={tmp_path / name}"]
    undisturbed = subprocess.Popen(command("whole"), env=environment(), stdout=subprocess.PIPE, text=True)
    killed = subprocess.Popen(command("killed"), env=environment(), stdout=subprocess.PIPE, text=True)
    parts, began = tmp_path / "killed" / "distilled" / "answers.jsonl.parts", time.monotonic()
    while not (parts / "000001.jsonl").exists() and time.monotonic() - began < 300:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    left = len(list(parts.glob("*.jsonl")))
    assert 2 <= left < 20 and not (tmp_path / "killed" / "distilled" / "records.jsonl").exists()
    again = run_process(command("killed"))
    assert again.returncode == 0, again.stderr
    assert "1/1 distilled: synthesize (begun)" in again.stdout
    assert f"{left} of 20 parts were written before" in again.stdout
    assert undisturbed.communicate()[0] and undisturbed.returncode == 0
    for name in ("records.jsonl", "answers.jsonl", "synthesis.json"):
        one, other = (tmp_path / work / "distilled" / name for work in ("killed", "whole"))
        assert one.read_bytes() == other.read_bytes()
