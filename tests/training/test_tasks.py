"""Tasks that are measured while training: their lines, an exact resume, and nothing compiled twice."""

import json
import subprocess
import time

import jax
import numpy as np
import pytest

from jaxsft.config import DataConfig, EvalConfig, MeshConfig, TaskConfig, TrainConfig
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.registry import prepare
from jaxsft.evaluation.task import Subject
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh
from jaxsft.training.train import train
from tests.training.conftest import WORDS, environment, lines, run

CONFIG = """
from jaxsft.config import DataConfig, TaskConfig, TrainConfig

def get_config():
    config = TrainConfig()
    data = lambda path: DataConfig(path=path, max_length=1_000_000, cache_dir={cache!r})
    config.adapter.kind = {kind!r}
    config.eval.tasks = [
        TaskConfig(name="facts", task="generation", data=data({questions!r}), batch_size=8),
        TaskConfig(name="cloze", task="multiple_choice", data=data({questions!r})),
        TaskConfig(name="likelihood", data=data({questions!r})),
    ] + ([TaskConfig(name="drift", task="deviation", data=data({questions!r}))] if {kind!r} == "lora" else [])
    return config
"""


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Twelve questions that serve every task."""
    rng, path = np.random.default_rng(1), tmp_path_factory.mktemp("questions") / "questions.jsonl"
    records = []
    for i in range(12):
        choices = rng.choice(WORDS, 4, replace=False).tolist()
        prompt, watch = " ".join(rng.choice(WORDS, 3)) + " ?", choices[(i + 1) % 4]
        record = {"prompt": prompt, "completion": choices[i % 4], "choices": choices, "watch": watch}
        records.append(record | {"task_type": ("fact", "skill")[i % 2]})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def with_tasks(command, questions, tmp_path):
    """`with_tasks(kind, workdir, *overrides)` is a training command with all tasks that its kind allows."""

    def build(kind, workdir, *overrides):
        file = tmp_path / f"{kind}.py"
        file.write_text(CONFIG.format(kind=kind, questions=str(questions), cache=str(tmp_path / "cache")))
        arguments = command(workdir, "steps=12", "optimizer.ema=0.5", *overrides)
        return [f"--config={file}" if a.startswith("--config=") else a for a in arguments]

    return build


NAMES = {"none": ["facts", "cloze", "likelihood"], "lora": ["facts", "cloze", "likelihood", "drift"]}


@pytest.mark.parametrize("kind", ["none", "lora"])
def test_lines_summary_and_resume(with_tasks, tmp_path, kind):
    """Without held-out data; stopped by SIGTERM in the middle, the lines are those of a run that was not."""
    overrides = ("eval.path=", "eval.every=4", "optimizer.learning_rate=1e-2")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = run(with_tasks(kind, whole, *overrides))
    assert done.returncode == 0, done.stderr
    found = [line for line in lines(whole) if line["split"] != "train"]
    assert [(line["step"], line["split"]) for line in found] == [
        (step, name) for step in (0, 4, 8, 12) for name in NAMES[kind]
    ]
    facts, cloze, likelihood, *drift = ([line for line in found if line["split"] == name] for name in NAMES[kind])
    assert {"exact_match", "standard_error", "questions", "ended", "watched", "cut"} <= facts[0].keys()
    assert not any(name.startswith("by_") for name in facts[0].keys() | cloze[0].keys())
    assert all(line["questions"] == 12 for line in facts + cloze)
    assert likelihood[-1]["nll_per_token"] < likelihood[0]["nll_per_token"]
    if kind == "lora":
        (drift,) = drift
        assert drift[0]["kl_per_token"] == 0 < drift[-1]["kl_per_token"]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["facts_exact_match"] == facts[-1]["exact_match"]
    assert summary["cloze_accuracy"] == cloze[-1]["accuracy"]
    assert f"facts exact_match {facts[-1]['exact_match']:.4f}" in done.stdout.splitlines()[-1]

    arguments = with_tasks(kind, broken, *overrides)
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not trained(broken / "metrics.jsonl"):
        time.sleep(0.005)
    process.terminate()
    process.wait(timeout=120)
    again = run(arguments)
    assert again.returncode == 0, again.stderr
    assert lines(broken) == lines(whole)


def trained(metrics):
    """Whether a run has written a line of training."""
    return metrics.exists() and b'"train"' in metrics.read_bytes()


TASKS = ("generation", "multiple_choice", "perplexity", "deviation")


@pytest.mark.parametrize("kind", TASKS)
def test_a_second_evaluation_compiles_and_reads_nothing(model_folder, questions, tmp_path, kind):
    """With other parameters, as after some steps; the file is gone by then."""
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    decoder = Decoder(load_architecture(model_folder))
    params = load_params(model_folder, decoder, mesh)
    own = tmp_path / "questions.jsonl"
    own.write_bytes(questions.read_bytes())
    data = DataConfig(path=str(own), template="plain", cache_dir=str(tmp_path / "cache"))
    subject = Subject(decoder, load_tokenizer(str(model_folder)), model_folder, mesh, adapted=True)
    task = prepare(TaskConfig("task", kind, data, batch_size=5), subject)
    first = task.measure(params, None)
    own.unlink()
    later = jax.block_until_ready(jax.tree.map(lambda p: 1.1 * p, params))
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
    second = task.measure(later, None)
    seen = [name for name in events if "compile" in name]
    assert seen == []
    jax.jit(lambda x: x + 0.123)(1.0)
    assert any("backend_compile" in name for name in events), "the events are called otherwise"
    assert first.numbers.keys() == second.numbers.keys()
    assert kind != "perplexity" or first.numbers != second.numbers


def test_refusals(model_folder, data_file, questions, tmp_path):
    def refuse(task, message):
        config = TrainConfig(steps=2, batch_size=8, eval=EvalConfig(tasks=[task]))
        config.model.path, config.data = str(model_folder), DataConfig(str(data_file), template="plain")
        config.data.cache_dir = str(tmp_path / "cache")
        with pytest.raises(UserError, match=message):
            train(config, str(tmp_path / "run"))
        assert not (tmp_path / "run" / "config.json").exists()

    data = DataConfig(str(questions), cache_dir=str(tmp_path / "cache"))
    refuse(TaskConfig("drift", "deviation", data), r"config\.eval\.tasks\[0\] is a deviation")
    refuse(TaskConfig("facts", "generation", DataConfig(str(tmp_path / "nowhere.jsonl"))), "no file or folder")
