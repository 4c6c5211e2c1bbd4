"""Runs on chunks of domains and on chains of thought, from the config files to the metrics."""

import json
import runpy

import numpy as np
import pytest

from jaxsft.config import TrainConfig
from jaxsft.errors import UserError
from jaxsft.training.train import train
from jaxsft.validation import validate
from tests.conftest import REPOSITORY
from tests.training.conftest import WORDS, lines


def say(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(2, 7)))


def config_of(name: str, model, records: list[dict], folder, template: str) -> TrainConfig:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = runpy.run_path(str(REPOSITORY / "configs" / name))["get_config"]()
    config.model.path, config.data.path, config.data.cache_dir = str(model), str(path), str(folder / "cache")
    config.data.template, config.data.max_length, config.eval.path = template, 512, str(path)
    config.batch_size, config.steps, config.log.tensorboard = 8, 2, False
    return config


def test_chunks_of_domains(model_folder, tmp_path):
    rng = np.random.default_rng(0)
    names = ("dialogue",) * 12 + ("code",) * 6
    records = [{"prompt": say(rng), "completion": say(rng), "task_type": name} for name in names]
    config = config_of("moi.py", model_folder, records, tmp_path, "chatml")
    config.data.mixture.domains = ("dialogue", "code")
    config.data.mixture.system = {"code": "You are a programmer."}
    config.data.packing = False
    validate(config)
    train(config, str(tmp_path / "run"))
    before, first, second, after = lines(tmp_path / "run")
    assert before["examples"] == after["examples"] == 18  # each once, by itself
    for line in (first, second):
        low, high = sorted([line["nll/dialogue"], line["nll/code"]])
        assert 0 < low < line["nll"] < high
    config.reference.models = ("start",)
    with pytest.raises(UserError, match="score each example by itself"):
        train(config, str(tmp_path / "other"))
    config.data.attention_unit, config.data.truncation = "example", "right"
    with pytest.raises(UserError, match="score each example whole"):
        train(config, str(tmp_path / "other"))


def test_chains_of_thought(model_folder, tmp_path):
    rng = np.random.default_rng(0)
    records = [
        {"question": say(rng), "chains": [say(rng) for _ in range(count)], "answer": say(rng)}
        for count in (1, 2, 3) * 4
    ]
    config = config_of("dcot.py", model_folder, records, tmp_path, "raw")
    config.data.dcot.draws = 2
    validate(config)
    train(config, str(tmp_path / "run"))
    found = lines(tmp_path / "run")
    assert found[0]["examples"] == 2 * 24  # of what is held out every draw
    assert found[-1]["loss"] < found[0]["loss"]
