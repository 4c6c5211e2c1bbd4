"""A run on records and their views, from the config to the metrics."""

import json

import numpy as np
import pytest

from jaxsft.config import DataConfig, EvalConfig, ObjectiveConfig, TrainConfig
from jaxsft.training.train import train
from tests.training.conftest import WORDS, lines


def test_views_are_held_to_what_is_said_of_their_record(model_folder, tmp_path):
    """Sixteen records with none to three views; held out are the records themselves."""
    rng, path = np.random.default_rng(0), tmp_path / "data.jsonl"
    say = lambda: " ".join(rng.choice(WORDS, rng.integers(2, 7)))
    records = [{"prompt": say(), "completion": say(), "views": [say() for _ in range(i % 4)]} for i in range(16)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = TrainConfig(steps=3, batch_size=8)
    config.model.path, config.log.tensorboard, config.optimizer.learning_rate = str(model_folder), False, 1e-3
    config.data = DataConfig(
        str(path), template="plain", max_length=256, grouping="views", cache_dir=str(tmp_path / "cache")
    )
    config.eval = EvalConfig(path=str(path))
    config.objective = ObjectiveConfig("max_match", consistency=0.5)
    train(config, str(tmp_path / "run"))
    found = lines(tmp_path / "run")
    steps, held_out = ([line for line in found if line["split"] == split] for split in ("train", "eval"))
    for line in steps:
        assert line["consistency"] > 0
        assert line["loss"] == pytest.approx(line["nll"] + 0.5 * line["consistency"], rel=1e-5)
        assert line["loss/consistency"] == pytest.approx(0.5 * line["consistency"], rel=1e-5)
    assert held_out[-1]["examples"] == 16
