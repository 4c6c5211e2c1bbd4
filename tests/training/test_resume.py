"""Runs that are killed, stopped and started again: the numbers are those of an undisturbed run, bit for bit."""

import json
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

from tests.training.conftest import environment, lines, run


@pytest.fixture(scope="module", params=["full", "lora"])
def undisturbed(request, command, tmp_path_factory):
    """The overrides of a case, and the lines of its undisturbed run."""
    extra = {"full": ("optimizer.ema=0.9",), "lora": ("adapter.kind=lora", "adapter.lora.dropout=0.1", "accumulate=2")}
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run(command(workdir, *extra[request.param]))
    assert done.returncode == 0, done.stderr
    return extra[request.param], lines(workdir), workdir


def test_metrics_are_complete(undisturbed):
    _, metrics, workdir = undisturbed
    assert [m["step"] for m in metrics if m["split"] == "train"] == list(range(1, 25))
    assert [m["step"] for m in metrics if m["split"] == "eval"] == [0, 10, 20, 24]
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == 24
    assert summary["train_loss"] == metrics[-2]["loss"] and summary["eval_loss"] == metrics[-1]["loss"]
    losses = [m["loss"] for m in metrics if m["split"] == "train"]
    assert min(losses) < losses[0] - 0.1, "nothing was learnt"


def test_killed_at_random_moments(undisturbed, command, tmp_path):
    """Five SIGKILLs a case, ten in all, at moments drawn anew each time the suite runs."""
    overrides, expected, _ = undisturbed
    workdir, seed, progress = tmp_path / "run", time.time_ns(), []
    draw = random.Random(seed)
    while len(progress) < 5:
        process = subprocess.Popen(
            command(workdir, *overrides), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _wait_for_new_steps(workdir, draw.randint(1, 6), process)
        time.sleep(draw.random() * 0.3)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            progress.append((workdir / "metrics.jsonl").read_bytes().count(b'"train"'))
        else:  # it was done before the kill: its figures must be right all the same, and another one is killed
            assert process.returncode == 0, f"seed {seed}"
            assert lines(workdir) == expected, f"seed {seed}"
            shutil.rmtree(workdir)
    done = run(command(workdir, *overrides))
    assert done.returncode == 0, done.stderr
    assert lines(workdir) == expected, f"seed {seed}"
    assert min(progress) >= 1, "a run was killed before it trained"


def _wait_for_new_steps(workdir, count, process):
    """Until this process has written so many lines of training itself, or has ended.

    A run that starts replaces the file by one that is cut back to its checkpoint.
    """
    file = workdir / "metrics.jsonl"
    old, began, first = file.stat().st_ino if file.exists() else None, time.monotonic(), None
    while process.poll() is None:
        assert time.monotonic() - began < 120
        if file.exists() and file.stat().st_ino != old:
            lines_now = file.read_bytes().count(b'"train"')
            first = lines_now if first is None else first
            if lines_now >= first + count:
                return
        time.sleep(0.005)


def _wait_for_step(workdir, step, process):
    """Until the run has written a step, or has ended; a resumed run may be past it already."""
    began, text = time.monotonic(), b""
    while process.poll() is None and time.monotonic() - began < 60:
        file = workdir / "metrics.jsonl"
        text = file.read_bytes() if file.exists() else b""
        if text.count(b'"train"') >= step:
            return
        time.sleep(0.01)


def test_sigterm_saves_and_the_same_command_resumes(undisturbed, command, tmp_path):
    overrides, expected, _ = undisturbed
    workdir = tmp_path / "run"
    arguments = command(workdir, *overrides, "checkpoint.every=0")
    process = subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    _wait_for_step(workdir, 3, process)
    process.terminate()
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 143, out
    assert "stopped by SIGTERM" in out
    again = run(arguments)
    assert again.returncode == 0, again.stderr
    assert "resuming at step" in again.stdout
    assert re.search(r"; 24 steps of 8 rows, of which an epoch has [1-9]\d*\n", again.stdout)
    assert lines(workdir) == expected


def test_a_finished_run_says_so(undisturbed, command):
    overrides, expected, workdir = undisturbed
    again = run(command(workdir, *overrides))
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert lines(workdir) == expected


def test_killed_between_the_last_checkpoint_and_the_summary(undisturbed, command, tmp_path):
    overrides, expected, finished = undisturbed
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "summary.json").unlink()
    again = run(command(workdir, *overrides))
    assert again.returncode == 0, again.stderr
    assert (workdir / "summary.json").read_text() == (finished / "summary.json").read_text()
    assert lines(workdir) == expected


def test_another_config_or_data_is_refused(undisturbed, command, tmp_path, data_file):
    overrides, _, finished = undisturbed
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "summary.json").unlink()
    other = run(command(workdir, *overrides, "optimizer.b2=0.99"))
    assert other.returncode == 1
    assert "config.optimizer.b2 = 0.999, now it is 0.99" in other.stderr
    assert other.stderr.count("\n") <= 1, other.stderr

    changed = tmp_path / "changed.jsonl"
    changed.write_text(data_file.read_text().replace("fox", "cat", 1))
    record = json.loads((workdir / "config.json").read_text())
    record["config"]["data"]["path"] = str(changed)
    (workdir / "config.json").write_text(json.dumps(record))
    other = run([*command(workdir, *overrides), f"--config.data.path={changed}"])
    assert other.returncode == 1
    assert "fingerprints.data" in other.stderr


def test_a_live_run_is_left_alone(undisturbed, command, tmp_path):
    overrides, _, _ = undisturbed
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command(workdir, *overrides, "steps=2000"),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for_step(workdir, 1, process)
        second = run(command(workdir, *overrides, "steps=2000"))
    finally:
        process.kill()
        process.wait()
    assert second.returncode == 1
    assert "in use by a live run" in second.stderr


def test_a_half_written_checkpoint_is_not_taken(undisturbed, command, tmp_path):
    """Orbax commits by renaming; a folder that lacks its commit must not be resumed from."""
    overrides, expected, finished = undisturbed
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "summary.json").unlink()
    (last,) = (p for p in (workdir / "checkpoints").iterdir() if p.name == "24")
    shutil.copytree(last, workdir / "checkpoints" / "8.orbax-checkpoint-tmp-1")
    shutil.rmtree(last)
    again = run(command(workdir, *overrides))
    assert again.returncode == 0, again.stderr
    assert "resuming" not in again.stdout
    assert lines(workdir) == expected
