import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxsft.config import DataConfig
from jaxsft.data.inspection import describe, show
from tests.data.conftest import write_jsonl

REPOSITORY = Path(__file__).resolve().parents[2]


def test_supervised_tokens_are_marked(tmp_path, tokenizer):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one", "weight": 0.5}]
    turns += [{"role": "user", "content": "r"}, {"role": "assistant", "content": "two"}]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": turns, "task_type": "sums"}])
    config = DataConfig(path=path, template="chatml", max_length=64, cache_dir=str(tmp_path / "cache"))
    dataset, summary = describe(config, tokenizer)
    text = show(dataset, tokenizer, 0, colour=False)
    assert "assistant\n⟦one<|im_end|>⟧(weight 0.5)\n<|im_start|>user" in text
    assert "assistant\n⟦two<|im_end|>⟧\n" in text
    assert "task type sums" in text
    assert "\033[32mtwo<|im_end|>\033[0m" in show(dataset, tokenizer, 0, colour=True)
    assert summary.startswith("1 examples in 1 packed rows of 64 tokens")
    assert summary.endswith("full")
    config.max_examples_per_row = 1
    assert "1 rows hold config.data.max_examples_per_row 1" in describe(config, tokenizer)[1]


CONFIG = """
from jaxsft.config import TrainConfig

def get_config():
    return TrainConfig()
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "scripts/inspect_data.py", f"--config={tmp_path / 'config.py'}"]
        command += [f"--config.data.cache_dir={tmp_path / 'cache'}", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)

    return run


def test_the_script_shows_real_data(script, real_data):
    result = script(
        f"--config.model.path={real_data / 'models/stories260K'}",
        f"--config.data.path={real_data / 'instruct/dolly/dolly_3k.json'}",
        "--config.data.rows=:20", "--config.data.template=plain", "--num_examples=2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "20 records -> 20 examples" in result.stdout
    assert result.stdout.count("--- example ") == 2
    assert "### Response:\n⟦" in result.stdout
    assert "full" in result.stdout.splitlines()[-1]
    assert not result.stderr.strip()


def test_the_script_says_what_is_wrong_in_one_line(script, real_data, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "q", "completion": "a"}\n{"prompt": \n')
    result = script(
        f"--config.model.path={real_data / 'models/stories260K'}", f"--config.data.path={tmp_path / 'bad.jsonl'}",
        "--config.data.template=plain",
    )  # fmt: skip
    assert result.returncode == 1
    assert "bad.jsonl, line 2: malformed JSON" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_script_shows_the_world(script):
    result = script("--config.model.path=world:base", "--config.data.path=world:train", "--config.data.rows=:5")
    assert result.returncode == 0, result.stderr
    assert "5 records -> 5 examples" in result.stdout
    assert "note:" not in result.stdout


def test_what_looks_like_a_mistake_is_noted(script, tmp_path):
    rows = [("what is the zebra ?", "a b"), ("please repeat a b .", " "), ("please repeat a b .", "a b")]
    records = [{"prompt": prompt, "completion": completion} for prompt, completion in rows]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    result = script("--config.model.path=world:base", f"--config.data.path={path}", "--num_examples=0")
    assert result.returncode == 0, result.stderr
    assert "note: 1 with '<unk>', which stands for what the tokenizer does not know" in result.stdout
    assert "note: 1 with an empty answer, which teaches to end the turn at once" in result.stdout
