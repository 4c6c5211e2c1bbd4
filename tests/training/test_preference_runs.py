"""Runs on pairs, from the config file to the metrics."""

import json
import math
import runpy

import numpy as np
import pytest

from jaxsft.config import TrainConfig
from jaxsft.errors import UserError
from jaxsft.training.train import train
from jaxsft.validation import validate
from tests.conftest import REPOSITORY
from tests.training.conftest import WORDS, lines


def config_of(model, data, cache, **changes: object) -> TrainConfig:
    config = runpy.run_path(str(REPOSITORY / "configs" / "dpo.py"))["get_config"]()
    config.model.path, config.data.path, config.data.cache_dir = str(model), str(data), str(cache)
    config.data.template, config.batch_size, config.log.tensorboard = "plain", 8, False
    for path, value in changes.items():
        *steps, last = path.split("__")
        node = config
        for step in steps:
            node = getattr(node, step)
        setattr(node, last, value)
    validate(config)
    return config


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Sixteen pairs of ragged answers."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    say = lambda: " ".join(rng.choice(WORDS, rng.integers(2, 7)))
    records = [{"prompt": say(), "chosen": say(), "rejected": say()} for _ in range(16)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_two_alike_references_are_one(model_folder, pairs, tmp_path):
    """The start model scores the pairs before the first step, where loss and margin are those of no difference."""
    common = {"data__max_length": 256, "steps": 3, "optimizer__learning_rate": 1e-3}
    one = config_of(model_folder, pairs, tmp_path / "cache", eval__path=str(pairs), **common)
    train(one, str(tmp_path / "one"))
    found = [line for line in lines(tmp_path / "one") if line["split"] == "train"]
    assert found[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert found[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert found[2]["loss"] != found[0]["loss"]
    held_out = [line for line in lines(tmp_path / "one") if line["split"] == "eval"]
    assert held_out[0]["examples"] == 16  # the preferred answers
    two = config_of(model_folder, pairs, tmp_path / "cache", objective__name="mrpo", **common)
    two.reference.models = ("start", str(model_folder))
    train(two, str(tmp_path / "two"))
    again = [line for line in lines(tmp_path / "two") if line["split"] == "train"]
    for name in ("loss", "rewards/chosen", "logps/rejected"):
        np.testing.assert_allclose([a[name] for a in again], [f[name] for f in found], rtol=1e-4, atol=1e-5)


def test_scores_made_before_and_at_every_step_train_alike(model_folder, pairs, tmp_path):
    """A table of what the start says of all pairs, against the start asked under the adapter whenever a pair comes."""
    common = {"adapter__kind": "lora", "data__max_length": 256, "steps": 4, "optimizer__learning_rate": 1e-2}
    found = []
    for online in (False, True):
        config = config_of(model_folder, pairs, tmp_path / "cache", reference__online=online, **common)
        config.optimizer.warmup_ratio = 0.0
        train(config, str(tmp_path / str(online)))
        assert (tmp_path / str(online) / "scores" / "reference_0.parquet").exists() != online
        found.append([line for line in lines(tmp_path / str(online)) if line["split"] == "train"])
    assert abs(found[0][-1]["rewards/margins"]) > 1e-2, "the model has left its start"
    for name in ("loss", "rewards/chosen", "rewards/rejected", "deviation", "grad_norm"):
        np.testing.assert_allclose(*([line[name] for line in own] for own in found), rtol=2e-4, atol=1e-5)


def test_a_loss_on_pairs_needs_pairs(model_folder, pairs, tmp_path):
    config = config_of(model_folder, pairs, tmp_path / "cache", data__grouping="example")
    with pytest.raises(UserError, match=r"'dpo' needs config\.data\.grouping = 'preference', but it is 'example'"):
        train(config, str(tmp_path / "run"))


def test_pairs_need_a_loss_on_pairs(model_folder, pairs, tmp_path):
    """Plain fine-tuning would learn the rejected answers too."""
    config = config_of(model_folder, pairs, tmp_path / "cache", objective__name="sft", objective__beta=None, steps=1)
    with pytest.raises(UserError, match=r"'sft' would learn rejected answers like chosen ones"):
        train(config, str(tmp_path / "run"))


def test_the_margin_of_real_pairs_rises(real_data, tmp_path):
    """The first sixty records, of which two dozen fit, eight times over."""
    config = config_of(
        real_data / "models" / "stories260K",
        real_data / "preference" / "dpo_en_demo.json",
        tmp_path / "cache",
        data__rows=":60",
        data__max_length=512,
        data__max_dropped=1.0,
        steps=24,
        optimizer__learning_rate=2e-4,
    )
    train(config, str(tmp_path / "run"))
    margins = [line["rewards/margins"] for line in lines(tmp_path / "run")]
    assert abs(margins[0]) < 1e-3
    assert np.mean(margins[-4:]) > 0.5
