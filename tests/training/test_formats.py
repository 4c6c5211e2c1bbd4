"""docs/formats.md against the files of a run: every name that is written is on the page, and the reverse."""

import json
import re
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxsft.config import DataConfig, ScoreConfig, SuiteConfig, TaskConfig, TrainConfig
from jaxsft.scoring.confidence import score_confidence
from jaxsft.sharding import make_mesh
from jaxsft.training.plan import lay_out
from jaxsft.training.train import train
from jaxsft.validation import from_dict
from tests.conftest import REPOSITORY
from tests.training.conftest import lines, run

PAGE = (REPOSITORY / "docs" / "formats.md").read_text()
NOT_ON_CPUS = {"time/mfu", "time/peak_memory_gib"}


def table(heading: str, after: str = "") -> list[str]:
    """The names in the first column of the first table behind a heading (and behind the text `after`)."""
    text = PAGE.split(f"\n{heading}\n", 1)[1]
    text = text[text.index(after) :]
    lines = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)[0].splitlines()[2:]
    return [re.match(r"\| `(.*?)`", line)[1] for line in lines]


@pytest.fixture(scope="module")
def workdir(command, tmp_path_factory) -> Path:
    """A short LoRA run, evaluated."""
    folder = tmp_path_factory.mktemp("formats") / "run"
    arguments = command(folder, "steps=2", "eval.every=1", "checkpoint.every=1", config="lora")
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_workdir(workdir):
    assert {path.name for path in workdir.iterdir()} == {name.rstrip("/") for name in table("## The workdir of a run")}
    record = json.loads((workdir / "config.json").read_text())
    assert list(record) == table("### `config.json`")
    assert record["kind"] == "TrainConfig" and from_dict(TrainConfig, record["config"]).steps == 2
    assert set(record["fingerprints"]) == {"data", "model", "eval_data"}
    assert {"python", "jaxsft", "jax"} <= set(record["versions"])
    assert (workdir / ".lock").read_text() == ""


def test_metrics_and_summary(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train, held_out = ([line for line in lines if line["split"] == split] for split in ("train", "eval"))
    assert [line["step"] for line in train] == [1, 2] and [line["step"] for line in held_out] == [0, 1, 2]
    for line in train:
        assert line.keys() - {"step", "split"} == set(table("### `metrics.jsonl`")) - NOT_ON_CPUS
        assert line["loss"] == pytest.approx(line["nll"])
    for line in held_out:
        from_third = {"reduction_ratio"} if line["step"] < 2 else set()
        assert line.keys() - {"step", "split"} == set(table("### `metrics.jsonl`", "Split `eval`")) - from_third
        assert line["perplexity"] == pytest.approx(np.exp(line["loss"]))
    summary = json.loads((workdir / "summary.json").read_text())
    last = {f"{line['split']}_{name}": value for line in (held_out[-1], train[-1]) for name, value in line.items()}
    last = {name: v for name, v in last.items() if "time/" not in name and not name.endswith("split")}
    assert summary == {"steps": 2, **last}


def test_checkpoints(workdir):
    (folder,) = (workdir / "checkpoints").iterdir()
    assert folder.name == "2" and (folder / "commit_success.txt").exists() and (folder / "state").is_dir()
    held_out = json.loads((workdir / "summary.json").read_text())["eval_loss"]
    assert json.loads((folder / "metrics" / "metrics").read_text()) == {"eval_loss": held_out}
    metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
    assert metadata["custom_metadata"].keys() == {"num_tokens"}
    leaves = json.loads((folder / "state" / "_METADATA").read_text())["tree_metadata"]
    always = {"step", "params", "opt_state", "key", "horizon"}
    assert always <= {name.split("'")[1] for name in leaves} <= always | {"aux"}
    assert all("lora" in name for name in leaves if name.startswith("('params'"))


@pytest.fixture(scope="module")
def compared(model_folder, data_file, tmp_path_factory) -> Path:
    """A step of full fine-tuning with a reference, Fisher information and a deviation."""
    folder = tmp_path_factory.mktemp("compared")
    data = DataConfig(str(data_file), template="plain", max_length=64, cache_dir=str(folder / "cache"))
    config = TrainConfig(data=data, batch_size=8, steps=1)
    config.model.path, config.log.tensorboard = str(model_folder), False
    config.objective.name, config.objective.beta = "minor_sft", 0.1
    wanted = config.objective.regularizers
    wanted.kl_to_base, wanted.l2_to_start, wanted.l1 = 0.1, 0.1, 0.1
    wanted.ewc, wanted.ewc_data, wanted.ewc_examples = 0.1, data, 4
    config.eval.tasks = [TaskConfig("moved", "deviation", data)]
    train(config, str(folder / "run"))
    return folder / "run"


def test_what_some_runs_leave_besides(compared, tmp_path):
    more = {name.rstrip("/") for name in table("## The workdir of a run", "Some runs leave more")}
    usual = {name.rstrip("/") for name in table("## The workdir of a run")}
    assert {path.name for path in compared.iterdir()} - usual == more - {"stage.json", "submodels/K", "records.jsonl"}
    assert {path.name for path in (compared / "scores").iterdir()} == {"reference_0.parquet", "moved.parquet"}
    assert {path.name for path in (compared / "fisher").iterdir()} == {"diagonal", "key.json"}
    assert list(json.loads((compared / "fisher" / "key.json").read_text())) == ["data", "examples", "dtype"]
    prints = json.loads((compared / "config.json").read_text())["fingerprints"]
    assert set(prints) == {"data", "model", "reference_0", "ewc_data", "moved_data"}
    scores = tmp_path / "scores.parquet"
    config = ScoreConfig(batch_size=8)
    config.model.path = str(compared)
    score_confidence(config, scores)
    columns = {
        name.replace("nll_1", "nll_STEP")
        for file in (scores, *(compared / "scores").iterdir())
        for name in pq.read_schema(file).names
    }
    assert columns == set(table("### Tables of scores"))
    assert all(b"jaxsft" in pq.read_schema(file).metadata for file in (scores, *(compared / "scores").iterdir()))
    deviation = next(line for line in lines(compared) if line["split"] == "moved")
    assert "deviation" in deviation and "kl_per_token" not in deviation


def test_figures_of_some_losses_and_data(compared, model_folder):
    """Of the run, and of steps of other losses, which are traced alone."""
    usual = set(table("### `metrics.jsonl`")) | {"step", "split"}
    (line,) = (line for line in lines(compared) if line["split"] == "train")
    terms = {"loss/minor_sft", "loss/kl_to_base", "loss/l2_to_start", "loss/ewc", "loss/l1"}
    assert terms <= line.keys() and line.keys() - usual - terms >= {"deviation", "sample_weight"}
    found = line.keys() - terms | {"loss/TERM"}
    for name in ("dpo", "sftmix", "moi"):
        config = runpy.run_path(str(REPOSITORY / "configs" / f"{name}.py"))["get_config"]()
        config.model.path, config.data.max_length, config.batch_size = str(model_folder), 64, 8
        mesh = make_mesh(config.mesh)
        program = lay_out(config, mesh)
        with jax.set_mesh(mesh):
            _, metrics = jax.eval_shape(program.step, program.state, program.frozen, program.batch)
        found |= metrics.keys() - {"tokens"}
    found = {"nll/NAME" if name.startswith("nll/") else name for name in found}
    assert found - usual == set(table("### `metrics.jsonl`", "Some losses and data"))


def test_an_evaluation(workdir, data_file, tmp_path):
    """A suite of every task."""
    questions = tmp_path / "questions.jsonl"
    record = {"question": "the quick", "choices": ["brown fox", "lazy dogs"], "answer": 0}
    questions.write_text((json.dumps(record) + "\n") * 2)
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"prompt": "the quick", "completion": "brown fox", "watch": "lazy dogs"}) + "\n")
    paths = {"multiple_choice": questions, "generation": answers}
    tasks = table("## Evaluations")
    config = SuiteConfig(
        tasks=[TaskConfig(f"my {task}", task, DataConfig(str(paths.get(task, data_file)))) for task in tasks]
    )
    file = tmp_path / "suite.py"
    file.write_text(f"from jaxsft.config import *\n\n\ndef get_config():\n    return {config!r}\n")
    done = run([sys.executable, str(REPOSITORY / "scripts" / "evaluate.py"), f"--config={file}", f"--model={workdir}"])
    assert done.returncode == 0, done.stderr
    evaluations = PAGE.split("\n## Evaluations\n")[1].splitlines()
    written = json.loads((workdir / "evaluation.json").read_text())
    assert list(written) == ["model", "tasks", "config", "version"]
    for task in tasks:
        figures = written["tasks"][f"my {task}"]
        line = next(line for line in evaluations if line.startswith(f"| `{task}` |"))
        named = set(re.findall(r"`(\w+)`", line.split("|")[2])) - {"watch", "chains"}
        if task == "generation":
            named.remove("unstated")
        assert figures.keys() - {"task", "by_source", "by_task_type"} == named
    lines = [json.loads(line) for line in (workdir / "evaluation.jsonl").read_text().splitlines()]
    fields = table("## Evaluations", "a question a line")
    own = {"my multiple_choice": ["choices", "log_likelihoods"], "my generation": ["scores"]}
    of = lambda task: [name for name in fields if name in own[task] or not any(name in other for other in own.values())]
    assert len(lines) == 3 and all(list(line) == of(line["task"]) for line in lines)
    (workdir / "evaluation.json").unlink(), (workdir / "evaluation.jsonl").unlink()
