"""docs/formats.md against the files of a run: every name that is written is on the page, and the reverse."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxsft.config import DataConfig, SuiteConfig, TaskConfig, TrainConfig
from jaxsft.validation import from_dict
from tests.conftest import REPOSITORY
from tests.training.conftest import run

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
        assert line.keys() - {"step", "split"} == set(table("### `metrics.jsonl`", "Split `eval`"))
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
    assert {name.split("'")[1] for name in leaves} <= {"step", "params", "opt_state", "key", "aux"}
    assert {name.split("'")[1] for name in leaves} >= {"step", "params", "opt_state", "key"}
    assert all("lora" in name for name in leaves if name.startswith("('params'"))


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
        named = set(re.findall(r"`(\w+)`", line.split("|")[2])) - {"watch"}
        assert figures.keys() - {"task", "by_source", "by_task_type"} == named
    lines = [json.loads(line) for line in (workdir / "evaluation.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and all(list(line) == table("## Evaluations", "a question a line") for line in lines)
    (workdir / "evaluation.json").unlink(), (workdir / "evaluation.jsonl").unlink()
