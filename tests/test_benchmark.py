"""The benchmark script measures what it says; its figures are looked at by people, not by tests."""

import re
import sys

from tests.conftest import REPOSITORY
from tests.training.conftest import run


def test_a_line_for_each_shape_and_method():
    script = [sys.executable, str(REPOSITORY / "scripts" / "benchmark.py")]
    done = run([*script, "--shapes=tiny", "--methods=full,lora", "--steps=1"])
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    full, lora = (next(line for line in lines if line[:2] == ["tiny", method]) for method in ("full", "lora"))
    tokens, seconds, peak = float(full[2]), float(full[3]), float(full[5])
    assert abs(tokens * seconds / (16 * 256) - 1) < 0.05
    assert 0 < float(lora[5]) < peak, "adapters need less memory than full fine-tuning"
    assert re.search("1 timed steps each on", done.stdout)


def test_unknown_names_are_refused():
    done = run([sys.executable, str(REPOSITORY / "scripts" / "benchmark.py"), "--shapes=tinny"])
    assert done.returncode == 1
    assert "'tinny'" in done.stderr and "'tiny'" in done.stderr
