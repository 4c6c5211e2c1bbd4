"""Runs that are compared with a frozen model: the deviation, an exact resume, and what is refused."""

import gc
import json
import shutil
import weakref

import jax
import numpy as np
import pytest

from jaxsft.config import CheckpointConfig, DataConfig, ReferenceConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.scoring.table import read_scores, write_scores
from jaxsft.training import references
from jaxsft.training.restore import open_model
from jaxsft.training.train import train
from tests.training.conftest import lines


@pytest.fixture
def config(model_folder, data_file, tmp_path):
    data = DataConfig(str(data_file), template="plain", max_length=128, cache_dir=str(tmp_path / "cache"))
    config = TrainConfig(data=data, batch_size=8, steps=4)
    config.model.path, config.log.tensorboard = str(model_folder), False
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-2, 0
    config.checkpoint = CheckpointConfig(every=2, keep_latest=9)
    return config


@pytest.mark.parametrize("kind", ["none", "lora"])
def test_minor_sft_resumes_exactly(config, tmp_path, kind):
    """Before the first update the model is its reference; a resumed run takes the scores that are there."""
    config.adapter.kind, config.objective.name, config.objective.beta = kind, "minor_sft", 0.2
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, str(whole))
    first, *_, last = lines(whole)
    assert abs(first["deviation"]) < 1e-5
    assert abs(first["sample_weight"] - 1) < 1e-4
    assert last["deviation"] > 1e-3
    assert (whole / "scores" / "reference_0.parquet").exists()
    shutil.copytree(whole, broken)
    (broken / "summary.json").unlink()
    shutil.rmtree(broken / "checkpoints" / "4")
    train(config, str(broken))
    assert lines(broken) == lines(whole)


def test_any_objective_reports_the_deviation_from_several_references(config, tmp_path):
    """The first is another run; a table of other weights is refused and not used."""
    other = tmp_path / "other"
    train(config, str(other))
    config.reference = ReferenceConfig((str(other), "start"))
    train(config, str(tmp_path / "run"))
    assert lines(tmp_path / "run")[0]["deviation"] < -1e-3  # the start is less likely to say it than the trained run
    scores = [read_scores(tmp_path / "run" / "scores" / f"reference_{k}.parquet")[1]["log_prob"] for k in (0, 1)]
    assert np.mean(scores[0] > scores[1]) > 0.9

    again = tmp_path / "again"
    write_scores(again / "scores" / "reference_0.parquet", {"model": "x"}, np.arange(2), {"log_prob": np.zeros(2)})
    write_scores(again / "scores" / "reference_1.parquet", {"model": "x"}, np.arange(2), {"log_prob": np.zeros(2)})
    with pytest.raises(UserError, match="stale"):
        train(config, str(again))


def test_one_reference_is_in_memory_at_a_time(config, model_folder, tmp_path, monkeypatch):
    """Beside the start, which the run needs."""
    opened = []

    def watched(*arguments):
        gc.collect()
        assert [of() for of in opened] == [None] * len(opened)
        model = open_model(*arguments)
        opened.append(weakref.ref(jax.tree.leaves(model.params)[0]))
        return model

    monkeypatch.setattr(references, "open_model", watched)
    config.steps, config.reference = 1, ReferenceConfig((str(model_folder),) * 2)
    train(config, str(tmp_path / "run"))
    assert len(opened) == 2 and [of() for of in opened] == [None, None]


def test_a_reference_that_cannot_score_is_refused_before_the_run_is_recorded(config, model_folder, tmp_path):
    """One whose tokenizer gives tokens other ids, and a run without a checkpoint."""
    other, begun = tmp_path / "other", tmp_path / "begun"
    shutil.copytree(model_folder, other)
    definition = json.loads((other / "tokenizer.json").read_text())
    vocabulary = definition["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(definition))
    config.steps = 1
    train(config, str(begun))
    shutil.rmtree(begun / "checkpoints")
    for model, message in ((other, "other, whose tokenizer gives tokens other ids"), (begun, "has no checkpoint yet")):
        config.reference = ReferenceConfig(("start", str(model)))
        with pytest.raises(UserError, match=message):
            train(config, str(tmp_path / "run"))
        assert not (tmp_path / "run" / "config.json").exists()


def test_what_references_cannot_be_is_refused(config, tmp_path):
    def refuse(message, **changes):
        for path, value in changes.items():
            owner, field = path.split("__")
            setattr(getattr(config, owner), field, value)
        with pytest.raises(UserError, match=message):
            train(config, str(tmp_path / "run"))
        assert not (tmp_path / "run" / "config.json").exists()

    refuse("asks the base under an adapter, but config.adapter.kind is 'none'", reference__online=True)
    refuse("leave models empty", adapter__kind="lora", reference__models=("elsewhere",))
    refuse("'sft' reads no reference", reference__models=())
    refuse("score each example by itself.*, or leave models empty", reference__online=False,
           data__attention_unit="row", reference__models=("elsewhere",))  # fmt: skip
    refuse("score each example by itself.*, or set config.reference.online", reference__models=(),
           objective__name="minor_sft", objective__beta=0.1)  # fmt: skip
    refuse("'start' is the base alone.* to \\('elsewhere',\\), or for the base to", data__attention_unit="example",
           adapter__start="elsewhere")  # fmt: skip
    refuse("'random', which is no reference", adapter__start="", data__attention_unit="example", model__init="random",
           reference__models=("start",))  # fmt: skip
