"""Jobs in worker processes: all are done, and one that fails stops the others and is named."""

import os
import time
from pathlib import Path

import pytest

from jaxsft.comparison import workers
from jaxsft.errors import UserError


def work(job: str, folder: Path) -> None:
    """Leaves a file that tells the cores it ran on; "bad" and "dead" do what they are called."""
    if job == "bad":
        raise UserError("it is broken.")
    if job == "dead":
        os._exit(1)
    time.sleep(0.2)
    (folder.parent / job).write_text(str(len(os.sched_getaffinity(0))))


def test_every_job_is_done_on_a_core_of_its_own(tmp_path: Path):
    workers.run(work, [(f"{i}", tmp_path / "x") for i in range(4)], 2)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys("0123", "1")


def test_the_number_of_processes_follows_the_cores_where_there_is_no_accelerator(tmp_path: Path):
    workers.run(work, [("0", tmp_path / "x"), ("1", tmp_path / "x")])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kind, message", [("bad", "folder-bad: it is broken"), ("dead", "a worker died")])
def test_a_job_that_fails_stops_those_that_have_not_begun(kind: str, message: str, tmp_path: Path):
    jobs = [(kind, tmp_path / f"folder-{kind}")] + [(f"{i}", tmp_path / "x") for i in range(40)]
    with pytest.raises(UserError, match=message):
        workers.run(work, jobs, 1)
    assert len(list(tmp_path.iterdir())) < 10
