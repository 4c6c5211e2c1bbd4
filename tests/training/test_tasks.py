"""Tasks that are measured while training: their lines, an exact resume, and nothing compiled twice."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest

from jaxsft.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    EvaluateConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TaskConfig,
    TrainConfig,
)
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.registry import prepare
from jaxsft.evaluation.suite import evaluate
from jaxsft.evaluation.task import Subject
from jaxsft.models.checkpoint import load_architecture, load_params, save_hf
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh
from jaxsft.training.restore import open_model
from jaxsft.training.train import train
from tests.conftest import REPOSITORY
from tests.training.conftest import WORDS, lines, run


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


def config_of(kind, model_folder, data_file, questions, cache):
    """A run without held-out data, and with all tasks that its kind allows."""
    data = lambda path: DataConfig(str(path), template="plain", max_length=128, cache_dir=str(cache))
    config = TrainConfig(data=data(data_file), batch_size=8, steps=6)
    config.model.path, config.adapter.kind = str(model_folder), kind
    config.optimizer = OptimizerConfig(learning_rate=1e-2, ema=0.5)
    config.checkpoint, config.log.tensorboard = CheckpointConfig(every=2, keep_latest=9), False
    names = {"facts": "generation", "cloze": "multiple_choice", "likelihood": "perplexity"}
    names |= {"drift": "deviation"}
    tasks = [TaskConfig(name, task, data(questions), batch_size=8) for name, task in names.items()]
    config.eval = EvalConfig(tasks=tasks, every=2)
    return config


@pytest.mark.parametrize("kind", ["none", "lora"])
def test_lines_summary_and_resume(model_folder, data_file, questions, tmp_path, kind):
    """The lines of a run that goes on from step 2 are those of one that was never stopped."""
    config = config_of(kind, model_folder, data_file, questions, tmp_path / "cache")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    headline = train(config, str(whole))
    found = [line for line in lines(whole) if line["split"] != "train"]
    names = [task.name for task in config.eval.tasks]
    assert [(line["step"], line["split"]) for line in found] == [(step, n) for step in (0, 2, 4, 6) for n in names]
    facts, cloze, likelihood, drift = ([line for line in found if line["split"] == name] for name in names)
    assert {"exact_match", "standard_error", "questions", "ended", "watched", "cut"} <= facts[0].keys()
    assert not any(name.startswith("by_") for name in facts[0].keys() | cloze[0].keys())
    assert all(line["questions"] == 12 for line in facts + cloze)
    assert likelihood[-1]["nll_per_token"] < likelihood[0]["nll_per_token"]
    assert drift[0]["deviation"] == 0 != drift[-1]["deviation"]
    if kind == "lora":  # the base is there to be asked; under full fine-tuning its log-likelihoods alone were kept
        assert drift[0]["kl_per_token"] == 0 < drift[-1]["kl_per_token"]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["facts_exact_match"] == facts[-1]["exact_match"]
    assert summary["cloze_accuracy"] == cloze[-1]["accuracy"]
    assert f"facts exact_match {facts[-1]['exact_match']:.4f}, cloze accuracy" in headline

    shutil.copytree(whole, broken)
    (broken / "summary.json").unlink()
    for step in (4, 6):
        shutil.rmtree(broken / "checkpoints" / str(step))
    train(config, str(broken))
    assert lines(broken) == lines(whole)
    assert (broken / "summary.json").read_text() == (whole / "summary.json").read_text()


def test_a_workdir_is_measured_as_the_loop_measured_it(model_folder, data_file, questions, tmp_path):
    """By the example of a suite, whose figures go into the workdir."""
    config = config_of("none", model_folder, data_file, questions, tmp_path / "cache")
    config.steps, config.eval.every = 2, 0
    workdir = tmp_path / "run"
    train(config, str(workdir))
    overrides = [f"--config.tasks[{i}].data.cache_dir={tmp_path / 'cache'}" for i in range(3)]
    suite = f"--config={REPOSITORY}/configs/eval/suite.py:{questions}"
    done = run([sys.executable, str(REPOSITORY / "scripts" / "evaluate.py"), suite, f"--model={workdir}", *overrides])
    assert done.returncode == 0, done.stderr
    tasks = json.loads((workdir / "evaluation.json").read_text())["tasks"]
    last = {line["split"]: line for line in lines(workdir)}
    assert tasks["likelihood"]["nll_per_token"] == pytest.approx(last["likelihood"]["nll_per_token"], rel=1e-5)
    assert tasks["answers"]["exact_match"] == last["facts"]["exact_match"]
    assert tasks["drift"]["kl_per_token"] > 0
    assert tasks["drift"]["deviation"] == pytest.approx(last["drift"]["deviation"], rel=1e-4)
    assert len((workdir / "evaluation.jsonl").read_text().splitlines()) == 12


def test_a_deviation_is_from_the_weights_that_the_run_started_from(model_folder, data_file, questions, tmp_path):
    """They are refused where no folder has them: they were drawn at random, or the folder holds others by now."""
    start, cache = tmp_path / "start", tmp_path / "cache"
    shutil.copytree(model_folder, start)
    config = config_of("none", start, data_file, questions, cache)
    config.eval.tasks, config.steps = [], 1
    train(config, str(tmp_path / "pretrained"))
    config.model.init, config.seed = "random", 5
    train(config, str(tmp_path / "random"))
    data = DataConfig(path=str(questions), template="plain", cache_dir=str(cache))

    def moved(run: str, reference: str = "") -> float:
        asked = EvaluateConfig("moved", "deviation", data, 16, reference=reference)
        asked.model.path = str(tmp_path / run)
        return evaluate(asked).figures["kl_per_token"]

    assert 0 < moved("pretrained") == moved("pretrained", str(start)) < moved("random", str(start))
    with pytest.raises(UserError, match=r"random started from random weights, .* set config\.reference"):
        moved("random")
    decoder = Decoder(load_architecture(start))
    other = tmp_path / "other"
    save_hf(other, decoder, decoder.init(jax.random.key(9)))
    shutil.copy(other / "model.safetensors", start)
    with pytest.raises(UserError, match=r"start is no longer the model that .*pretrained was trained on"):
        moved("pretrained")


def test_frozen_weights_are_those_that_the_run_had(model_folder, data_file, questions, tmp_path):
    """They are in no checkpoint: a run that froze some is refused where its start holds others by now."""
    start = tmp_path / "start"
    shutil.copytree(model_folder, start)
    config = config_of("none", start, data_file, questions, tmp_path / "cache")
    config.eval.tasks, config.steps, config.optimizer.freeze = [], 1, ("embed",)
    train(config, str(tmp_path / "run"))
    mesh = make_mesh(MeshConfig())
    assert open_model(str(tmp_path / "run"), ModelConfig(), mesh).params
    decoder = Decoder(load_architecture(start))
    save_hf(tmp_path / "other", decoder, decoder.init(jax.random.key(9)))
    shutil.copy(tmp_path / "other" / "model.safetensors", start)
    with pytest.raises(UserError, match=r"start is no longer the model that .*run was trained on"):
        open_model(str(tmp_path / "run"), ModelConfig(), mesh)


def test_tasks_follow_the_data(model_folder, data_file, questions, tmp_path):
    """A resumed run whose questions have changed is refused."""
    own = tmp_path / "questions.jsonl"
    own.write_bytes(questions.read_bytes())
    config = config_of("none", model_folder, data_file, own, tmp_path / "cache")
    config.eval.tasks, config.steps = config.eval.tasks[:1], 1
    train(config, str(tmp_path / "run"))
    (tmp_path / "run" / "summary.json").unlink()
    own.write_text(own.read_text().replace(" ?", " !"))
    with pytest.raises(UserError, match="facts_data"):
        train(config, str(tmp_path / "run"))


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
    events: list[str] = []
    record = lambda name, *_, **__: events.append(name)
    jax.monitoring.register_event_duration_secs_listener(record)
    second = task.measure(later, None)
    compiled = [name for name in events if "compile" in name]
    jax.jit(lambda x: x + 0.123)(1.0)
    jax.monitoring.unregister_event_duration_listener(record)
    assert compiled == []
    assert any("backend_compile" in name for name in events), "the events are called otherwise"
    assert first.numbers.keys() == second.numbers.keys()
    assert kind != "perplexity" or first.numbers != second.numbers


def test_refusals(model_folder, data_file, questions, tmp_path):
    def refuse(task, message, init="pretrained"):
        config = TrainConfig(steps=2, batch_size=8, eval=EvalConfig(tasks=[task]))
        config.model.init = init
        config.model.path, config.data = str(model_folder), DataConfig(str(data_file), template="plain")
        config.data.cache_dir = str(tmp_path / "cache")
        with pytest.raises(UserError, match=message):
            train(config, str(tmp_path / "run"))
        assert not (tmp_path / "run" / "config.json").exists()

    data = DataConfig(str(questions), cache_dir=str(tmp_path / "cache"))
    refuse(TaskConfig("drift", "deviation", data), "no model to deviate from", init="random")
    refuse(TaskConfig("facts", "generation", DataConfig(str(tmp_path / "nowhere.jsonl"))), "no file or folder")
