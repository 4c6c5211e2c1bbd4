"""Runs whose groups are drawn anew each epoch, or whose records are changed, go on exactly where they were."""

import json
import shutil

import numpy as np
import pytest

from jaxsft.config import CheckpointConfig, DataConfig, TrainConfig
from jaxsft.training.train import train
from jaxsft.validation import validate
from tests.training.conftest import WORDS, lines

CLASSES = ("good", "poor")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Sixteen records that serve every method: a pair of answers, a class, which is a domain too."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("records") / "records.jsonl"
    say = lambda: " ".join(rng.choice(WORDS, rng.integers(2, 6)))
    rows = [{"prompt": say(), "chosen": say(), "rejected": say(), "source": CLASSES[i % 2]} for i in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def preference(config: TrainConfig) -> None:
    config.data.grouping, config.objective.name, config.objective.beta = "preference", "dpo", 0.1


def chunks(config: TrainConfig) -> None:
    config.data.grouping, config.data.attention_unit = "domain", "group"
    config.data.mixture.by, config.data.mixture.domains = "source", CLASSES


def classes(config: TrainConfig) -> None:
    config.data.template = "openchat"
    config.data.classes.condition = {"good": "GPT4", "poor": "GPT3"}
    config.data.classes.inference, config.data.classes.weight = "good", {"good": 1.0, "poor": 0.1}


def spp(config: TrainConfig) -> None:
    config.adapter.kind, config.adapter.spp.rank, config.adapter.spp.dropout = "spp", 4, 0.1


def experts(config: TrainConfig) -> None:
    """Under dropout, whose masks a resumed run draws as the whole one does."""
    config.data.packing = True
    config.data.types.by, config.data.types.of = "source", {"good": 1}
    config.adapter.kind = "loramoe"
    config.adapter.loramoe.dropout, config.adapter.loramoe.dropout_mode = 0.3, "per_expert"


def mix_ln(config: TrainConfig) -> None:
    """From random weights, with metrics of each layer."""
    config.model.init, config.model.new.n_post_layers, config.model.new.embed_std = "random", 1, 0.5
    config.log.layer_grad_norms = True


def qlora(config: TrainConfig) -> None:
    config.model.quantization, config.adapter.kind, config.adapter.lora.dropout = "nf4", "lora", 0.1


@pytest.mark.parametrize("method", [preference, chunks, classes, spp, experts, mix_ln, qlora])
def test_a_run_that_was_broken_off_writes_the_same_lines(model_folder, records, tmp_path, method):
    """Over an epoch's end: eight rows a step, and no epoch has more than sixteen."""
    config = TrainConfig(batch_size=8, steps=4)
    config.data = DataConfig(str(records), template="plain", max_length=256, packing=False)
    config.data.cache_dir = str(tmp_path / "cache")
    config.model.path, config.log.tensorboard = str(model_folder), False
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-2, 0
    config.checkpoint = CheckpointConfig(every=1, keep_latest=9)
    method(config)
    validate(config)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, str(whole))
    shutil.copytree(whole, broken)
    (broken / "summary.json").unlink()
    for step in (3, 4):
        shutil.rmtree(broken / "checkpoints" / str(step))
    train(config, str(broken))
    assert lines(broken) == lines(whole)
    losses = [line["loss"] for line in lines(whole)]
    assert len(set(losses)) == 4
