"""The scripts as users call them: figures in a file, answers on the screen, one sentence when something is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxsft.adapters.peft import save_peft
from jaxsft.config import LoRAConfig
from tests.evaluation.folders import make_folder

REPOSITORY = Path(__file__).resolve().parents[2]
NLL = ["evaluate", "--config=configs/eval/perplexity.py"]


SUITE = """
from jaxsft.config import DataConfig, SuiteConfig, TaskConfig

def get_config():
    data = lambda: DataConfig(path={asked!r}, template="plain", cache_dir={cache!r})
    kinds = {{"likelihood": "perplexity", "written": "generation", "chosen": "multiple_choice"}}
    return SuiteConfig(tasks=[TaskConfig(name, task, data()) for name, task in kinds.items()])
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """name -> (exit status, stdout, stderr) of commands that run side by side; and the folder they ran in."""
    here = tmp_path_factory.mktemp("scripts")
    decoder, _ = make_folder(here / "model")
    lora = LoRAConfig(rank=2, targets=("layers.1.attn.q_proj",))
    factors = {"lora_a": np.ones((3, 32, 2), np.float32), "lora_b": np.full((3, 2, 32), 0.1, np.float32)}
    tree = {"stacks": {"0": {"0": {"attn": {"q_proj": factors}}}}}
    save_peft(here / "adapter", decoder.arch, tree, lora, "/moved/away")
    adapter, base = f"--model={here / 'adapter'}", f"--base={here / 'model'}"
    (here / "text.jsonl").write_text('{"text": "Hello, world."}\n{"text": "a longer text, of bytes"}\n')
    model, text, out = (
        f"--model={here / 'model'}",
        f"--config.data.path={here / 'text.jsonl'}",
        f"--output={here / 'out'}",
    )
    (here / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    known, unknown = ("--prompt=please repeat b c d .", "--prompt=please repeat the zebra .")
    sampling = ["--temperature=1", "--top_k=40", "--top_p=0.9", "--max_new_tokens=5", "--seed=1", "--batch_size=4"]
    cache = f"--config.data.cache_dir={here / 'cache'}"
    (here / "asked.jsonl").write_text('{"prompt": "Hello", "completion": "world", "choices": ["world", "moon"]}\n')
    (here / "suite.py").write_text(SUITE.format(asked=str(here / "asked.jsonl"), cache=str(here / "cache")))
    commands = {
        "evaluate": [*NLL, model, text, out, cache],
        "suite": ["evaluate", f"--config={here / 'suite.py'}", model, f"--output={here / 'suite.json'}"],
        "no output": [*NLL, model, text, cache],
        "no workdir": [*NLL, f"--model={here / 'misspelt'}", text, cache],
        "no file": [*NLL, model, "--config.data.path=nowhere.jsonl", out, cache],
        "over the data": [*NLL, model, text, f"--output={here / 'text.json'}"],
        "over answers": [*NLL, model, text, f"--config.known={here / 'base.jsonl'}", f"--output={here / 'base.json'}"],
        "no model": [*NLL, "--model=/nowhere/at/all", text, out, cache],
        "generate": [
            "generate",
            model,
            f"--prompts={here / 'prompts.jsonl'}",
            "--template=plain",
            *sampling,
            out + "2",
        ],
        "generate two": ["generate", "--model=world:chat", known, unknown],
        "evaluate adapter": [*NLL, adapter, base, text, out + "-adapter", cache],
        "generate adapter": ["generate", adapter, base, "--prompt=Hello", "--raw", "--max_new_tokens=3"],
        "export adapter": ["export", adapter, base, f"--output={here / 'own'}", "--format=adapter"],
        "no base": ["generate", adapter, "--prompt=Hello", "--raw"],
        "export": ["export", model, f"--output={here / 'exported'}", "--format=hf", "--dtype=bfloat16"],
    }
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    started = {
        name: subprocess.Popen(
            [sys.executable, f"scripts/{script}.py", *arguments],
            cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for name, (script, *arguments) in commands.items()
    }  # fmt: skip
    outputs = {name: process.communicate(timeout=900) for name, process in started.items()}
    return here, {name: (started[name].returncode, *outputs[name]) for name in started}


def test_evaluate_writes_figures(runs):
    here, results = runs
    status, stdout, stderr = results["evaluate"]
    assert status == 0, stderr
    figures = json.loads((here / "out").read_text())
    assert (figures["tokens"], figures["examples"], figures["task"]) == (36, 2, "perplexity")
    assert 0 < figures["nll_per_token"] < 20
    assert (
        stdout.splitlines()[-1] == f"{here / 'out'}: nll_per_token {figures['nll_per_token']:.5f} "
        f"(perplexity {figures['perplexity']:.4g}) over 36 tokens of 2 examples"
    )


def test_every_script_opens_an_adapter(runs):
    """PEFT's folder, whose base has moved; and says how to name it."""
    here, results = runs
    for name in ("evaluate adapter", "generate adapter", "export adapter"):
        assert results[name][0] == 0, results[name][2]
    adapted, plain = (json.loads((here / file).read_text())["nll_per_token"] for file in ("out-adapter", "out"))
    assert abs(adapted - plain) > 1e-4
    assert "3 new tokens" in results["generate adapter"][1]
    assert json.loads((here / "own" / "adapter.json").read_text())["base"]["name"] == str(here / "model")
    status, _, stderr = results["no base"]
    assert status == 1 and "Traceback" not in stderr
    assert "is an adapter for /moved/away, which is no folder here" in stderr and "--base=FOLDER" in stderr


def test_suite_writes_figures_and_answers(runs):
    here, results = runs
    status, stdout, stderr = results["suite"]
    assert status == 0, stderr
    figures = json.loads((here / "suite.json").read_text())
    assert {name: part["task"] for name, part in figures["tasks"].items()} == {
        "likelihood": "perplexity", "written": "generation", "chosen": "multiple_choice",
    }  # fmt: skip
    assert figures["tasks"]["likelihood"]["tokens"] == len("world") + 1
    assert figures["tasks"]["written"]["questions"] == 1
    assert [task["name"] for task in figures["config"]["tasks"]] == list(figures["tasks"])
    written, chosen = map(json.loads, (here / "suite.jsonl").read_text().splitlines())
    assert (written["task"], written["prompt"], written["reference"]) == ("written", "Hello", "world")
    assert chosen["correct"] == (chosen["answer"] == "world") == bool(figures["tasks"]["chosen"]["accuracy"])
    *_, likelihood, answer, choice, last = stdout.splitlines()
    assert likelihood.startswith("likelihood  nll_per_token ")
    assert answer.startswith("written     exact_match 0.0000")
    assert choice.startswith("chosen      accuracy")
    assert last == f"{here / 'suite.json'}: 3 tasks, 2 answers in {here / 'suite.jsonl'}"


def test_generate_prints_answers(runs):
    here, results = runs
    status, stdout, stderr = results["generate"]
    assert status == 0, stderr
    assert "the template 'plain'" in stdout
    assert "temperature 1, top_k 40, top_p 0.9, at most 5" in stdout
    assert " new tokens for 1 prompt in " in stdout.splitlines()[-1]
    (record,) = map(json.loads, (here / "out2").read_text().splitlines())
    assert record["prompt"] == "Hello"
    assert 1 <= record["tokens"] <= 5
    assert record["answer"] in stdout


def test_generate_prints_several_answers_under_their_prompts(runs):
    _, results = runs
    status, stdout, stderr = results["generate two"]
    assert status == 0, stderr
    assert "the likeliest tokens, at most 128" in stdout
    assert "note: 1 tokens of what is asked are '<unk>'" in stdout
    assert "\n> please repeat b c d .\nb c d\n\n> please repeat the zebra .\n" in stdout


def test_export_writes_a_folder(runs):
    here, results = runs
    status, stdout, stderr = results["export"]
    assert status == 0, stderr
    assert stdout.splitlines()[-1].startswith(f"{here / 'exported'}: bfloat16 checkpoint")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in (here / "exported").iterdir()
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no file", "nowhere.jsonl"),
        ("no model", "/nowhere/at/all"),
        ("no output", "--output is missing"),
        ("no workdir", "misspelt is no workdir of a run"),
        ("over answers", "base.jsonl, which is read as data; choose another name"),
        ("over the data", "text.jsonl, which is read as data; choose another name"),
    ],
)
def test_errors_are_one_sentence(runs, name, words):
    status, _, stderr = runs[1][name]
    assert status == 1
    (line,) = stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert words in line
