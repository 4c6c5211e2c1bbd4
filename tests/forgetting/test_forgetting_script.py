"""The command on files, and its page in a real browser."""

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.forgetting.evaluations import record, write
from tests.report.test_report_browser import CHROMIUM, FRAME, MEASURE, WIDTHS, chromium

LONG = "a-model-whose-name-goes-on_and_on-" * 2


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The folder of a report on files, and what the command printed; a task with many subjects and long answers."""
    here = tmp_path_factory.mktemp("script")
    asked = [(i, f"subject_{i % 40}_with_a_long_name") for i in range(120)]
    make = lambda n: [record("facts", i, i % 7 < n, task_type=t, prompt=f"question {i} " * 9) for i, t in asked]
    files = [write(here, name, make(n)) for name, n in (("base", 6), (LONG, 3), ("other", 5))]
    flags = [f"--base_figures={files[0]}", *(f"--figures={file}" for file in files[1:])]
    return here / "out", run(*flags, f"--output={here / 'out'}", "--draws=200", "--confidence=0.9", "--shown=2")


def run(*flags):
    return subprocess.run(
        [sys.executable, "scripts/forgetting.py", *flags], cwd=REPOSITORY, capture_output=True, text=True, timeout=200
    )


def test_the_command(command):
    folder, done = command
    assert done.returncode == 0, done.stderr
    assert f"{LONG} lost on 1 of 1 task, most on facts: 85.8" in done.stdout.splitlines()[-1]
    found = json.loads((folder / "report.json").read_text())
    assert found["settings"] == {"draws": 200, "confidence": 0.9, "seed": 0} and found["models"] == [LONG, "other"]
    assert len(found["subjects"]) == 2 * 40
    html = (folder / "report.html").read_text()
    assert "90\u202f% intervals" in html and "16 more are in the table" in html
    assert (folder / "questions.jsonl").read_text().count("\n") == 120


def test_flags_that_do_not_go_together():
    both = run("--base=a", "--figures=b.json", "--output=x")
    assert both.returncode == 1 and both.stderr.startswith("error: give either models (--base, --model) or what was")


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_scrolls_sideways(command, width):
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH; on Debian, apt-get install chromium")
    folder, _ = command
    html = (folder / "report.html").read_text().replace("<details", "<details open")
    (folder / "page.html").write_text(html.replace("</body>", MEASURE))
    (folder / f"frame{width}.html").write_text(FRAME.format(width=width))
    frame = (folder / f"frame{width}.html").as_uri()
    dom = chromium("--dump-dom", "--virtual-time-budget=5000", "--window-size=1400,2400", frame)
    (measured,) = re.findall(r"<title>width (\d+)</title>", dom)
    assert int(measured) == width
