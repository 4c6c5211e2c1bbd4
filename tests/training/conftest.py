"""A model folder, a data file and a command line small enough for real runs in subprocesses."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsft.models.checkpoint import save_hf
from jaxsft.models.decoder import Decoder
from tests.conftest import REPOSITORY
from tests.data.conftest import make_tokenizer
from tests.tiny import llama

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dogs",
    "while",
    "seven",
    "wizards",
    "quietly",
    "mix",
    "bright",
    "potions",
]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with its tokenizer, in Hugging Face format."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    decoder = Decoder(llama(vocab_size=320))
    save_hf(folder, decoder, decoder.init(jax.random.key(0)))
    make_tokenizer(bos_token="<s>", eos_token="</s>").hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty short conversations of ragged length."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "conversations.jsonl"
    say = lambda low, high: " ".join(rng.choice(WORDS, rng.integers(low, high)))
    records = [{"prompt": say(1, 4), "completion": say(1, 9)} for _ in range(60)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="session")
def command(model_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """`command(workdir, *overrides)` is a training command of 24 steps, evaluated and saved on the way."""
    cache = tmp_path_factory.mktemp("cache")

    def build(workdir: Path, *overrides: str, config: str = "sft") -> list[str]:
        return [
            sys.executable,
            str(REPOSITORY / "scripts" / "train.py"),
            f"--config={REPOSITORY}/configs/{config}.py",
            f"--workdir={workdir}",
            *(
                f"--config.{override}"
                for override in (
                    f"model.path={model_folder}",
                    f"data.path={data_file}",
                    "data.rows=:-12",
                    f"eval.path={data_file}",
                    "eval.rows=-12:",
                    "eval.every=10",
                    "data.template=plain",
                    "data.max_length=128",
                    "data.max_examples_per_row=4",
                    f"data.cache_dir={cache}",
                    "batch_size=8",
                    "steps=24",
                    "optimizer.learning_rate=1e-3",
                    "checkpoint.every=4",
                    *overrides,
                )
            ),
        ]

    return build


def environment(**changes: str) -> dict[str, str]:
    """One fake device unless asked for more; the suite's compilation cache is inherited."""
    defaults = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return os.environ | defaults | {"XLA_FLAGS": devices(1)} | changes


def devices(count: int) -> str:
    """XLA_FLAGS for so many fake CPU devices."""
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"  # as in tests/conftest.py
    return f"--xla_force_host_platform_device_count={count} {patience}"


def run(arguments: Sequence[str], **changes: str) -> subprocess.CompletedProcess:
    """The finished process, its output as text."""
    return subprocess.run(
        arguments, env=environment(**changes), capture_output=True, text=True, timeout=900, check=False
    )


def lines(workdir: Path) -> list[dict]:
    """`metrics.jsonl` without wall-clock figures."""
    text = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in text]
