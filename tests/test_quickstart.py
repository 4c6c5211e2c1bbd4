"""The quickstart, as a newcomer runs it; the environment is the test's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_the_quickstart_teaches_measures_and_reports_without_noise(tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    environment |= {"VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    command = ["bash", str(REPOSITORY / "scripts" / "quickstart.sh"), str(tmp_path / "out")]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    noise = [line for line in (first.stdout + first.stderr).splitlines() if re.search("warn|deprecat", line, re.I)]
    assert not noise
    rows = {line.split(",")[0]: line.split()[-3:] for line in first.stdout.splitlines() if ", %" in line}
    seen, cloze = ([float(cell) for cell in rows[name]] for name in ("seen", "cloze"))
    assert seen[0] < 5 and min(seen[1:]) > 60, "both learn"
    assert cloze[0] > 95 and max(cloze[1:]) < 90, "both forget"
    report = tmp_path / "out" / "report.html"
    assert "<svg" in report.read_text()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0 and again.stdout.count("is finished already") == 2, "nothing is done twice"
