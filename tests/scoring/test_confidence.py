"""Confidence by its equation, and measured of the snapshots of a run."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxsft.config import CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig, ScoreConfig, TrainConfig
from jaxsft.data.dataset import prepare
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.scoring.confidence import confidence, score_confidence
from jaxsft.scoring.table import read_scores
from jaxsft.sharding import make_mesh
from jaxsft.training.checkpoint import Checkpoints, snapshot_steps
from jaxsft.training.restore import open_model
from jaxsft.training.runs import snapshots, trained_by
from jaxsft.training.train import train
from tests.data.conftest import write_jsonl
from tests.training.conftest import data_file, model_folder

__all__ = ["data_file", "model_folder"]  # fixtures


def test_the_equation():
    """T8, and a checkpoint that is certain of nothing."""
    got = confidence(np.array([[1.0, 2.0], [0.5, 2.0], [0.25, 1e9]]), np.array([1, 2]))
    np.testing.assert_allclose(got[0], -1.8836762, rtol=1e-7)
    np.testing.assert_allclose(got[1], -(2 * np.e + np.exp(50.0)) / 3, rtol=1e-12)
    assert confidence(np.zeros((2, 3)), np.ones(3)).tolist() == [-1] * 3


@pytest.mark.parametrize(
    ("count", "steps", "want"), [(5, 22, [4, 9, 13, 18, 22]), (1, 7, [7]), (4, 2, [1, 2]), (0, 9, [])]
)
def test_snapshots_are_evenly_spaced(count, steps, want):
    assert snapshot_steps(count, steps) == want


@pytest.fixture(scope="module", params=["none", "lora"])
def run(request, model_folder, data_file, tmp_path_factory):
    """A short run that keeps three snapshots, though other checkpoints come and go."""
    root = tmp_path_factory.mktemp("reference")
    data = DataConfig(str(data_file), template="plain", max_length=128, cache_dir=str(root / "cache"))
    config = TrainConfig(data=data, batch_size=8, steps=7)
    config.model.path, config.adapter.kind = str(model_folder), request.param
    config.optimizer = OptimizerConfig(learning_rate=1e-2)
    config.checkpoint, config.log.tensorboard = CheckpointConfig(every=3, snapshots=3), False
    train(config, str(root / "run"))
    return root / "run"


def test_what_is_kept(run):
    assert snapshots(run) == [2, 5, 7]
    checkpoints = Checkpoints(run / "checkpoints", CheckpointConfig(), read_only=True)
    assert checkpoints.steps == [2, 5, 7], "3 and 6 were saved too"
    checkpoints.close()
    with pytest.raises(UserError, match=r"no checkpoint of step 3; it has \[2, 5, 7\]"):
        open_model(str(run), ModelConfig(), make_mesh(TrainConfig().mesh), 3)


def test_every_snapshot_has_weights_of_its_own(run):
    mesh = make_mesh(TrainConfig().mesh)
    norms = [
        float(
            sum(abs(np.asarray(x)).sum() for x in jax.tree.leaves(open_model(str(run), ModelConfig(), mesh, s).parts))
        )
        for s in (2, 5, 7, None)
    ]
    assert len(set(norms)) == 3 and norms[2] == norms[3]


def test_a_table_of_all_snapshots(run, tmp_path):
    path = tmp_path / "scores" / "scores.parquet"
    line = score_confidence(ScoreConfig(model=ModelConfig(str(run)), batch_size=8), path)
    assert line.startswith("60 examples by 3 checkpoints, confidence -")
    examples, columns = read_scores(path)
    assert examples.tolist() == list(range(60)) and list(columns) == ["confidence", "nll_2", "nll_5", "nll_7"]
    model = open_model(str(run), ModelConfig(), make_mesh(TrainConfig().mesh), 5)
    lengths, nll = _by_hand(model, run)
    np.testing.assert_allclose(columns["nll_5"], nll, rtol=2e-5)
    means = np.stack([columns[f"nll_{s}"] / lengths for s in (2, 5, 7)]).astype(np.float64)
    np.testing.assert_allclose(columns["confidence"], -np.exp(means).mean(axis=0), rtol=1e-5)
    assert columns["nll_7"].sum() < columns["nll_5"].sum() < columns["nll_2"].sum(), "it learns what it is asked"

    written = path.stat().st_mtime_ns
    assert score_confidence(ScoreConfig(model=ModelConfig(str(run)), batch_size=16), path) == line
    assert path.stat().st_mtime_ns == written
    path.unlink()  # as if it had been killed between the checkpoints and the table: no model is loaded again
    assert score_confidence(ScoreConfig(model=ModelConfig(str(run)), batch_size=8), path) == line


def _by_hand(model, run):
    """Supervised targets of every example, and their summed negative log-likelihood, an example at a time."""
    dataset = prepare(trained_by(run).data, model.tokenizer)
    lengths, sums = [], []
    for i in range(len(dataset)):
        ids, weights, _ = dataset.example(i)
        row = np.zeros((1, 128), np.int32)
        row[0, : len(ids)] = ids
        real = (np.arange(128) < len(ids)).astype(np.int32)[None]
        out = model.decoder.forward(model.params, row, np.arange(128)[None], real, adapters=model.adapters)
        log_p = jax.nn.log_softmax(model.decoder.head(model.params, out.hidden, model.adapters))[0]
        where = np.flatnonzero(weights)
        lengths.append(len(where))
        sums.append(-float(np.asarray(log_p)[where - 1, ids[where]].sum()))
    return np.array(lengths), np.array(sums)


@pytest.mark.parametrize("grouping", ["preference", "dcot", "mixup"])
def test_scores_are_of_the_examples_of_their_grouping(model_folder, tmp_path, grouping):
    records = {
        "preference": [{"prompt": "one", "chosen": "two " * i, "rejected": "three"} for i in range(1, 7)],
        "dcot": [{"question": "one", "chains": ["two", "two " * i], "answer": "three"} for i in range(2, 8)],
        "mixup": [{"prompt": "one", "completion": "two " * i} for i in range(1, 7)],
    }[grouping]
    data = DataConfig(write_jsonl(tmp_path / "records.jsonl", records), template="plain", max_length=128)
    data.cache_dir, table = str(tmp_path / "cache"), tmp_path / "scores.parquet"
    model = ModelConfig(str(model_folder))
    score_confidence(ScoreConfig(model=model, data=data, grouping=grouping, batch_size=8), table)
    used = dataclasses.replace(data, grouping=grouping, scores=str(table), keep=0.5)
    dataset = prepare(used, load_tokenizer(str(model_folder)))
    assert len(set(dataset.records[dataset.epoch(0).members].tolist())) == (2 if grouping == "mixup" else 3)


def test_tables_of_other_numbers_are_refused(model_folder, data_file, tmp_path):
    """A stage that was broken off, and goes on in another dtype, would otherwise mix both."""
    data = DataConfig(str(data_file), rows=":8", template="plain", max_length=128, cache_dir=str(tmp_path / "cache"))
    config = ScoreConfig(model=ModelConfig(str(model_folder)), data=data, batch_size=8)
    score_confidence(config, tmp_path / "scores.parquet")
    for field in ("dtype", "param_dtype"):
        other = dataclasses.replace(config, model=dataclasses.replace(config.model, **{field: "bfloat16"}))
        with pytest.raises(UserError, match=rf"scores\.parquet are stale: .* {field} = 'float32', now .*'bfloat16'"):
            score_confidence(other, tmp_path / "scores.parquet")
    (tmp_path / "scores.parquet").unlink()
    with pytest.raises(UserError, match=r"nll\.parquet are stale: .* param_dtype"):
        score_confidence(other, tmp_path / "scores.parquet")


def test_a_model_that_was_not_trained_gives_a_perplexity_split(model_folder, data_file, tmp_path):
    data = DataConfig(str(data_file), rows=":9", template="plain", max_length=128, cache_dir=str(tmp_path / "cache"))
    config = ScoreConfig(model=ModelConfig(str(model_folder)), data=data, batch_size=8)
    line = score_confidence(config, tmp_path / "scores.parquet")
    assert line.startswith("9 examples by 1 checkpoints")
    columns = read_scores(tmp_path / "scores.parquet")[1]
    assert list(columns) == ["confidence", "nll"] and (columns["confidence"] < -1).all()
    with pytest.raises(UserError, match=r"stale: .* examples = "):
        score_confidence(
            dataclasses.replace(config, data=dataclasses.replace(data, rows=":8")), tmp_path / "scores.parquet"
        )
    with pytest.raises(UserError, match=r"config\.data\.path is empty"):
        score_confidence(ScoreConfig(model=ModelConfig(str(model_folder))), tmp_path / "none.parquet")
