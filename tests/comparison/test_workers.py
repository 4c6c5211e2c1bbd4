"""Jobs in worker processes: all are done, one that fails ends the rest and is named, no worker outlives the parent."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxsft.comparison import workers
from jaxsft.errors import UserError
from tests.conftest import REPOSITORY

# A shell's background job ignores Ctrl-C, and so would what it starts; this does not.
COMPARE = """
import signal, sys, time
from pathlib import Path
from jaxsft import cli
from jaxsft.comparison import workers
from tqdm import tqdm

def work(folder):
    with tqdm(total=1):
        folder.touch()
        time.sleep(600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main(lambda: workers.run(work, [(Path(__file__).parent / str(i),) for i in range(9)], 2))
"""


def work(job: str, folder: Path) -> None:
    """Leaves a file that tells the cores it ran on; "bad", "dead", "defect" and "slow" do what they are called."""
    if job == "slow":
        time.sleep(600)
    if job == "bad":
        raise UserError("it is broken.")
    if job == "defect":
        raise ZeroDivisionError
    if job == "dead":
        os._exit(1)
    time.sleep(0.2)
    (folder.parent / job).write_text(str(len(os.sched_getaffinity(0))))


def test_every_job_is_done_on_a_core_of_its_own(tmp_path: Path):
    workers.run(work, [(f"{i}", tmp_path / "x") for i in range(4)], 2)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys("0123", "1")


def test_the_number_of_processes_follows_the_cores_where_there_is_no_accelerator(tmp_path: Path):
    workers.run(work, [("0", tmp_path / "x"), ("1", tmp_path / "x")])
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"0": "1", "1": "1"}, "a core each"


@pytest.mark.parametrize("kind, message", [("bad", "folder-bad: it is broken"), ("dead", "a worker died")])
def test_a_job_that_fails_ends_the_others(kind: str, message: str, tmp_path: Path):
    jobs = [
        ("slow", tmp_path / "x"),
        (kind, tmp_path / f"folder-{kind}"),
        *((f"{i}", tmp_path / "x") for i in range(40)),
    ]
    begin = time.monotonic()
    with pytest.raises(UserError, match=message):
        workers.run(work, jobs, 2)
    assert not multiprocessing.active_children()
    assert time.monotonic() - begin < 60 and len(list(tmp_path.iterdir())) < 10


def test_a_defect_keeps_its_traceback_and_tells_the_job(tmp_path: Path):
    with pytest.raises(ZeroDivisionError) as caught:
        workers.run(work, [("defect", tmp_path / "folder-defect")], 1)
    assert "folder-defect" in caught.value.__notes__[0]
    assert "in work" in str(caught.value.__cause__), "the worker's traceback"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_parent(how: signal.Signals, tmp_path: Path):
    """At Ctrl-C, which a terminal sends to the whole group, and when the parent alone is killed."""
    script = tmp_path / "script.py"
    script.write_text(COMPARE)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, script], env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
        send = os.killpg if how == signal.SIGINT else os.kill
        send(process.pid, how)
        _, said = process.communicate(timeout=120)  # until the last worker has let go of stderr
        if how == signal.SIGINT:
            assert process.returncode == 130
            assert said.endswith("\ninterrupted\n") and "Traceback" not in said, "and no warning after it"
        assert not (tmp_path / "2").exists(), "none has begun another job"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
