"""The pass over the data: every example once, resumable, and refused when stale."""

import dataclasses
import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxsft.config import DataConfig, MeshConfig
from jaxsft.data.dataset import prepare
from jaxsft.data.loader import Loader
from jaxsft.errors import UserError
from jaxsft.models.decoder import Decoder
from jaxsft.scoring import run
from jaxsft.scoring.reference import score_log_probs
from jaxsft.scoring.run import score_examples
from jaxsft.scoring.table import read_scores, write_scores
from jaxsft.sharding import make_mesh
from tests.data.conftest import make_tokenizer
from tests.tiny import llama

KEY = {"examples": "e", "model": "m"}


@pytest.fixture
def data(tmp_path):
    """Forty conversations of ragged length, in rows of several."""
    rng = np.random.default_rng(0)
    words = lambda: " ".join(rng.choice(["blue", "red", "green"], rng.integers(1, 7)))
    text = "".join(json.dumps({"prompt": words(), "completion": words()}) + "\n" for _ in range(40))
    (tmp_path / "rows.jsonl").write_text(text)
    config = DataConfig(str(tmp_path / "rows.jsonl"), template="plain", max_length=128, max_examples_per_row=4)
    config.cache_dir = str(tmp_path / "cache")
    dataset = prepare(config, make_tokenizer(bos_token="<s>", eos_token="</s>"))
    return dataset, config


def number_of(seen):
    """A score that is half the example's index, and one a token that is its id; counts the batches it is asked."""

    def score(batch):
        seen.append(1)
        index, targets = batch.extras["example_index"], batch.targets.astype(np.float32)
        return {"example_index": index, "example_ids": batch.example_ids, "half": index / 2, "target": targets}

    return score


def one():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def test_every_example_is_scored_once_and_every_token(data, tmp_path):
    dataset, config = data
    path, seen = tmp_path / "scores" / "a.parquet", []
    arguments = (dataset, Loader(dataset, config, 4), one(), path, KEY, 4)
    scores = score_examples(number_of(seen), *arguments)
    assert (scores["half"] == np.arange(40) / 2).all()
    for i, targets in enumerate(scores["target"]):
        ids = dataset.example(i)[0]
        assert len(targets) == len(ids)
        assert (targets[1:] == ids[1:]).all()
    again = score_examples(number_of(asked := []), *arguments)
    assert not asked
    assert (again["half"] == scores["half"]).all()
    assert all((a == b).all() for a, b in zip(again["target"], scores["target"]))
    dataset.score("half", again["half"])
    dataset.score("target", again["target"])
    batch = Loader(dataset, config, 4).batch(0)
    supervised = batch.weights > 0
    assert (batch.extras["target"][supervised] == batch.targets[supervised]).all()


def test_a_broken_pass_goes_on(data, tmp_path, monkeypatch):
    dataset, config = data
    monkeypatch.setattr(run, "PART", 2)
    path, seen = tmp_path / "a.parquet", []
    whole = score_examples(number_of(seen), dataset, Loader(dataset, config, 2), one(), tmp_path / "b.parquet", KEY, 2)
    count = len(seen)
    assert count >= 6

    def breaks(batch):
        if len(asked) == 5:
            raise KeyboardInterrupt
        return number_of(asked)(batch)

    asked = []
    with pytest.raises(KeyboardInterrupt):
        score_examples(breaks, dataset, Loader(dataset, config, 2), one(), path, KEY, 2)
    assert not path.exists()
    assert len(list((tmp_path / "a.parts").iterdir())) == 2
    rest = []
    scores = score_examples(number_of(rest), dataset, Loader(dataset, config, 2), one(), path, KEY, 2)
    assert len(rest) == count - 4
    assert (scores["half"] == whole["half"]).all()
    assert not (tmp_path / "a.parts").exists()


def test_parts_of_another_pass_are_not_taken(data, tmp_path, monkeypatch):
    dataset, config = data
    monkeypatch.setattr(run, "PART", 2)
    write_scores(tmp_path / "a.parts" / "00000.parquet", KEY | {"rows": 2, "model": "x"}, [0], {"half": np.ones(1)})
    scores = score_examples(number_of([]), dataset, Loader(dataset, config, 2), one(), tmp_path / "a.parquet", KEY, 2)
    assert (scores["half"] == np.arange(40) / 2).all()


def test_parts_of_rows_of_another_form_are_not_taken(data, tmp_path, monkeypatch):
    """Of which the n-th holds other examples."""
    dataset, config = data
    monkeypatch.setattr(run, "PART", 2)

    def breaks(batch):
        if len(asked) == 5:
            raise KeyboardInterrupt
        return number_of(asked)(batch)

    for change in ({"max_examples_per_row": 2}, {"packing": False}, {"max_length": 120}):
        path, asked = tmp_path / f"{next(iter(change))}.parquet", []
        with pytest.raises(KeyboardInterrupt):
            score_examples(breaks, dataset, Loader(dataset, config, 2), one(), path, KEY, 2)
        loader = Loader(dataset, dataclasses.replace(config, **change), 2)
        scores = score_examples(number_of([]), dataset, loader, one(), path, KEY, 2)
        assert (scores["half"] == np.arange(40) / 2).all()


def test_a_stale_table_is_refused(data, tmp_path):
    dataset, _ = data
    path, loader = tmp_path / "a.parquet", Loader(*data, 2)
    write_scores(path, KEY, np.arange(40), {"half": np.zeros(40)})
    for name, now in (("examples", "other data"), ("model", "other weights")):
        with pytest.raises(UserError, match=rf"stale: they were made with {name} = '\w', now it is '{now}'"):
            read_scores(path, KEY | {name: now})
    with pytest.raises(UserError, match="there are no scores at"):
        read_scores(tmp_path / "b.parquet")
    pq.write_table(pa.table({"example": [1]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="is no table of scores"):
        read_scores(tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_text("text")
    with pytest.raises(UserError, match="is no Parquet file"):
        read_scores(tmp_path / "d.parquet")
    write_scores(path, KEY, np.arange(39), {"half": np.zeros(39)})
    with pytest.raises(UserError, match="scores of 39 examples, but the data has 40"):
        score_examples(number_of([]), dataset, loader, one(), path, KEY, 2)
    nan = lambda batch: {"example_index": batch.extras["example_index"], "x": batch.extras["example_index"] * np.nan}
    with pytest.raises(UserError, match="'x' is not finite"):
        score_examples(nan, dataset, loader, one(), tmp_path / "e.parquet", KEY, 2)
    assert not (tmp_path / "e.parquet").exists()


@pytest.mark.parametrize("shape", [MeshConfig(1, 1, 1), MeshConfig(1, 4, 2)], ids=["one device", "eight"])
def test_log_probabilities_are_those_of_dense_logits(data, tmp_path, shape):
    dataset, config = data
    decoder = Decoder(llama(vocab_size=320))
    params = decoder.init(jax.random.key(0))
    mesh = make_mesh(shape, jax.devices()[: shape.fsdp * shape.tensor])
    loader = Loader(dataset, config, 8)
    found = score_log_probs(decoder, (params, None), dataset, loader, mesh, tmp_path / "a.parquet", KEY, chunk_size=16)
    assert found.shape == (40,)
    for i in (0, 17, 39):
        ids, weights, _ = dataset.example(i)
        ones = np.ones((1, len(ids)), np.int32)
        hidden = decoder.forward(params, ids[None], np.arange(len(ids))[None], ones).hidden
        log_p = jax.nn.log_softmax(decoder.head(decoder.head_params(params), hidden))[0]
        expected = sum(float(log_p[t, ids[t + 1]]) for t in range(len(ids) - 1) if weights[t + 1])
        np.testing.assert_allclose(found[i], expected, rtol=2e-5)
    other = dataclasses.replace(config, max_length=64)
    changed = prepare(other, make_tokenizer(bos_token="<s>", eos_token="</s>"))
    assert changed.examples_fingerprint != dataset.examples_fingerprint
