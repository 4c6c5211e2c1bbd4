"""Two real processes of four fake devices each: the losses of one process, also after one was killed or stopped."""

import json
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxsft.config import DataConfig, DisperseConfig, ModelConfig
from jaxsft.dispersal.run import disperse
from tests.conftest import REPOSITORY
from tests.training.conftest import devices, environment, lines, run


def _start(arguments, log):
    """Both processes of a job, the coordinator first."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            arguments,
            env=environment(
                XLA_FLAGS=devices(4),
                JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(i),
            ),
            stdout=open(log.with_suffix(f".{i}"), "a"),
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]


MINOR = ("objective.name=minor_sft", "objective.beta=0.1")  # the reference scores the data before the first step


@pytest.mark.parametrize(("kind", "objective"), [("none", ()), ("lora", MINOR)], ids=["full", "lora-minor-sft"])
def test_losses_of_one_process_through_a_kill(command, tmp_path, kind, objective):
    overrides = (*objective, f"adapter.kind={kind}", "mesh.fsdp=4", "mesh.tensor=2", "steps=12", "eval.every=6")
    alone = run(command(tmp_path / "alone", *overrides), XLA_FLAGS=devices(8))
    assert alone.returncode == 0, alone.stderr

    workdir, log = tmp_path / "together", tmp_path / "log"
    arguments = command(workdir, *overrides)
    processes = _start(arguments, log)
    began = time.monotonic()
    while (
        not any((workdir / "checkpoints").glob("[0-9]*/commit_success.txt"))
        and not (workdir / "checkpoints" / "4").exists()
    ):
        assert time.monotonic() - began < 200 and processes[0].poll() is None, _logs(log)
        time.sleep(0.02)
    processes[1].kill()
    time.sleep(0.5)
    processes[0].kill()  # what a scheduler does with the rest of a broken job
    for process in processes:
        process.wait(timeout=300)

    processes = _start(arguments, log)
    assert [process.wait(timeout=900) for process in processes] == [0, 0], _logs(log)
    assert "resuming at step" in log.with_suffix(".0").read_text()
    for one, two in zip(lines(tmp_path / "alone"), lines(workdir), strict=True):
        assert (one["step"], one["split"]) == (two["step"], two["split"])
        np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)


WITH_TASKS = """
from jaxsft.config import DataConfig, TaskConfig, TrainConfig

def get_config():
    config = TrainConfig()
    data = lambda: DataConfig(path={path!r}, cache_dir={cache!r})
    config.eval.tasks = [
        TaskConfig(name="answers", task="generation", data=data(), batch_size=6),
        TaskConfig(name="choices", task="multiple_choice", data=data()),
    ]
    return config
"""


def test_both_measure_tasks(command, tmp_path):
    """A model that is taught one answer to everything gives it, though each process holds half of its numbers."""
    records = [
        {"prompt": prompt, "completion": "fox", "choices": ["wizards", "fox"]} for prompt in ("the", "seven quick dogs")
    ]
    path, log = tmp_path / "questions.jsonl", tmp_path / "log"
    path.write_text("".join(json.dumps(record) + "\n" for record in records * 20))
    config = tmp_path / "tasks.py"
    config.write_text(WITH_TASKS.format(path=str(path), cache=str(tmp_path / "cache")))
    overrides = ("mesh.fsdp=4", "mesh.tensor=2", "eval.path=", f"data.path={path}", "data.rows=", "steps=30",
                 "data.packing=False", "eval.every=0", "optimizer.learning_rate=2e-2")  # fmt: skip
    arguments = command(tmp_path / "run", *overrides)
    arguments = [f"--config={config}" if argument.startswith("--config=") else argument for argument in arguments]
    processes = _start(arguments, log)
    assert [process.wait(timeout=900) for process in processes] == [0, 0], _logs(log)
    first, last = (
        {line["split"]: line for line in lines(tmp_path / "run") if line["step"] == step and line["split"] != "train"}
        for step in (0, 30)
    )
    assert (first["answers"]["exact_match"], last["answers"]["exact_match"]) == (0, 1)
    assert (last["answers"]["ended"], last["answers"]["questions"], last["choices"]["accuracy"]) == (1, 40, 1)


def test_sigterm_to_one_process_stops_both_at_the_same_step(command, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    overrides = "mesh.fsdp=4", "mesh.tensor=2", "steps=1000", "eval.every=0", "checkpoint.every=0"
    processes = _start(command(workdir, *overrides), log)
    began = time.monotonic()
    while not (workdir / "metrics.jsonl").exists() or len(lines(workdir)) < 4:
        assert time.monotonic() - began < 200 and processes[0].poll() is None, _logs(log)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=600) for process in processes] == [143, 143], _logs(log)
    (saved,) = (workdir / "checkpoints").iterdir()
    assert lines(workdir)[-1]["step"] == int(saved.name) < 1000


@pytest.mark.parametrize("mesh", [("mesh.fsdp=8",), ("mesh.submodel=2", "mesh.fsdp=4")], ids=["split", "apart"])
def test_sub_models_of_two_processes(command, data_file, model_folder, tmp_path, mesh):
    """Scored before the first step, each split over both processes or held by one of them, and left as adapters."""
    data = DataConfig(str(data_file), rows=":-12", template="plain", max_length=128, max_examples_per_row=4)
    data.cache_dir, table = str(tmp_path / "cache"), tmp_path / "parts"
    disperse(DisperseConfig(ModelConfig(str(model_folder)), data, method="random", parts=2), table)
    overrides = (*MINOR, "adapter.kind=lora", "submodels=2", f"data.parts={table}/parts.parquet", "steps=3")
    alone = run(command(tmp_path / "alone", *overrides), XLA_FLAGS=devices(1))
    assert alone.returncode == 0, alone.stderr
    log = tmp_path / "log"
    processes = _start(command(tmp_path / "run", *overrides, *mesh), log)
    assert [process.wait(timeout=600) for process in processes] == [0, 0], _logs(log)
    for part in ("submodels/0", "submodels/1"):
        one, two = tmp_path / "alone" / part, tmp_path / "run" / part
        for a, b in zip(lines(one), lines(two), strict=True):
            assert (a["step"], a["split"]) == (b["step"], b["split"])
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        wanted, found = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (one, two))
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5)


def test_both_generate(tmp_path):
    """Rows over the processes and heads over the devices of each; one writes, what one device writes alone."""
    source, log = tmp_path / "in.jsonl", tmp_path / "log"
    prompts = [f"please repeat {' '.join('bcdfghk'[: 1 + i % 7])} ." for i in range(20)]
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))

    def arguments(name, *more):
        flags = ["--model=world:chat", "--dtype=float32", "--temperature=1", "--max_new_tokens=12", "--part_rows=6"]
        flags += [f"--input={source}", f"--output={tmp_path / name}", "--batch_size=4", *more]
        return [sys.executable, str(REPOSITORY / "scripts" / "generate.py"), *flags]

    alone = run(arguments("alone.jsonl"), XLA_FLAGS=devices(1))
    assert alone.returncode == 0, alone.stderr
    processes = _start(arguments("together.jsonl", "--tensor=2"), log)
    assert [process.wait(timeout=600) for process in processes] == [0, 0], _logs(log)
    one, two = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("alone.jsonl", "together.jsonl")
    )
    assert [record["answer"] for record in one] == [record["answer"] for record in two]
    np.testing.assert_allclose([r["logp"] for r in one], [r["logp"] for r in two], atol=2e-3)
    assert "part 4 of 4" in log.with_suffix(".0").read_text()
    assert "part" not in log.with_suffix(".1").read_text()


def _logs(log):
    return "\n".join(log.with_suffix(f".{i}").read_text()[-3000:] for i in range(2))
