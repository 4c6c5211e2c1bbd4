"""docs/add_a_loss.md is followed to the letter in a copy of the checkout."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.training.conftest import lines, run

PAGE = (REPOSITORY / "docs" / "add_a_loss.md").read_text()
COPIED = ("jaxsft", "tests", "scripts", "configs", "docs", "pyproject.toml")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with the page's files written and its edits made."""
    folder = tmp_path_factory.mktemp("checkout")
    skip = shutil.ignore_patterns("__pycache__", "golden", "recorded")
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=skip)
        else:
            shutil.copy(source, folder / name)
    files = re.findall(r"^`(\S+\.py)`\n\n```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(files) == PAGE.count("```python"), "a block of code without the name of its file"
    for name, text in files:
        assert not (folder / name).exists(), f"{name} is in the library already"
        (folder / name).write_text(text)
    for block in re.findall(r"^```diff\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL):
        for name, hunk in re.findall(r"^@@ (\S+)\n((?:[ +-].*\n)+)", block, flags=re.MULTILINE):
            edit(folder / name, hunk.splitlines())
    return folder


def edit(file: Path, hunk: list[str]) -> None:
    """Replaces the lines of a hunk marked ' ' and '-' by those marked ' ' and '+'."""
    old, new = ("".join(line[1:] + "\n" for line in hunk if line[0] in marks) for marks in (" -", " +"))
    text = file.read_text()
    assert text.count(old) == 1, f"the page's edit of {file.name} finds {text.count(old)} places for\n{old}"
    file.write_text(text.replace(old, new))


def in_copy(checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`python ...` with the copy's packages, in its folder."""
    command = ["env", "-C", str(checkout), f"PYTHONPATH={checkout}", sys.executable, *arguments]
    quick = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    return run(command, JAX_ENABLE_COMPILATION_CACHE="false", XLA_FLAGS=quick)


def test_the_tests_of_the_page_pass(checkout):
    wanted = "by_hand or (confidence-penalty and (accumulation or packing))"
    files = "tests/objectives/test_confidence_penalty.py", "tests/invariants.py"
    done = in_copy(checkout, "-m", "pytest", "-p", "no:cacheprovider", *files, "-k", wanted)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr


def test_the_code_is_as_the_linter_wants_it(checkout):
    touched = re.findall(r"^(?:`|@@ )(\S+\.py)`?$", PAGE, flags=re.MULTILINE)
    assert len(set(touched)) == 7
    for command in (["check"], ["format", "--check"]):
        done = in_copy(checkout, "-m", "ruff", *command, "--no-cache", *touched)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_and_the_config_take_it_in(checkout):
    done = in_copy(checkout, "scripts/config_reference.py")
    assert done.returncode == 0, done.stderr
    assert "| `--config.objective.entropy_bonus` | `float`, >= 0," in (checkout / "docs" / "config.md").read_text()


def test_it_trains(checkout, model_folder, data_file, tmp_path):
    """The config of the page; the loss is the sum of the two terms."""
    overrides = {
        "model.path": model_folder,
        "data.path": data_file,
        "data.template": "plain",
        "data.max_length": 64,
        "data.cache_dir": tmp_path / "cache",
        "steps": 4,
        "batch_size": 4,
    }
    arguments = ["--config=configs/confidence_penalty.py", f"--workdir={tmp_path / 'run'}"]
    done = in_copy(checkout, "scripts/train.py", *arguments, *(f"--config.{k}={v}" for k, v in overrides.items()))
    assert done.returncode == 0, done.stderr
    for line in lines(tmp_path / "run"):
        assert line["loss/nll"] == pytest.approx(line["nll"])
        assert line["loss/entropy"] == pytest.approx(-0.1 * line["entropy"]) and line["entropy"] > 1
        assert line["loss"] == pytest.approx(line["loss/nll"] + line["loss/entropy"])
