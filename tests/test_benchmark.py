"""The benchmark script measures what it says; its figures are looked at by people, not by tests."""

import re
import sys

from tests.conftest import REPOSITORY
from tests.training.conftest import run


def test_a_line_for_each_shape_and_method():
    script = [sys.executable, str(REPOSITORY / "scripts" / "benchmark.py")]
    done = run([*script, "--shapes=tiny", "--methods=full,lora", "--objectives=sft,minor_sft", "--steps=1"])
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    full, lora = (next(line for line in lines if line[:3] == ["tiny", method, "sft"]) for method in ("full", "lora"))
    tokens, seconds, peak = float(full[3]), float(full[4]), float(full[6])
    assert abs(tokens * seconds / (16 * 256) - 1) < 0.05
    assert 0 < float(lora[6]) < peak, "adapters need less memory than full fine-tuning"
    assert len(re.findall(r"minor_sft .* \d\.\d+ of the time of sft", done.stdout)) == 2
    assert len(re.findall(r"lora +sft .* \d\.\d+ of the time of full", done.stdout)) == 1
    assert re.search("1 timed steps each on", done.stdout)


def test_sub_models_are_measured_beside_single_runs():
    script = [sys.executable, str(REPOSITORY / "scripts" / "benchmark.py")]
    done = run([*script, "--methods=lora", "--steps=1", "--submodels=2", "--rows=1", "--length=16"])
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "lora x2" in line)
    _, _, _, _, tokens, seconds, *_ = line.split()
    assert abs(float(tokens) * float(seconds) / (2 * 16) - 1) < 0.05
    assert re.search(r"\d\.\d+ of the throughput of 2 runs in turn", line)


def test_unknown_names_are_refused():
    done = run([sys.executable, str(REPOSITORY / "scripts" / "benchmark.py"), "--shapes=tinny"])
    assert done.returncode == 1
    assert "'tinny'" in done.stderr and "'tiny'" in done.stderr


def test_generation_is_timed_by_itself(source):
    script = [sys.executable, str(REPOSITORY / "scripts" / "benchmark_generate.py"), f"--model={source}"]
    done = run([*script, "--rows=2", "--new_tokens=3", "--repeats=2"])
    assert done.returncode == 0, done.stderr
    ((seconds, rate),) = re.findall(r"^jaxsft: (\S+) s \(.*\), (\d+) tokens a second$", done.stdout, re.MULTILINE)
    assert abs(float(rate) * float(seconds) / 6 - 1) < 0.6  # of milliseconds with three digits


def test_generation_needs_a_python_that_has_torch(source, tmp_path):
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    script = [sys.executable, str(REPOSITORY / "scripts" / "benchmark_generate.py"), f"--model={source}"]
    done = run([*script, "--rows=2", "--new_tokens=3", "--repeats=1", f"--torch={other}"])
    assert done.returncode == 1 and "name a Python with torch and transformers" in done.stderr
