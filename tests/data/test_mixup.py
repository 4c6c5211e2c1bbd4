"""The pairs of a confident and an unconfident example, and the selection of examples by a score."""

import dataclasses

import numpy as np
import pytest

from jaxsft.config import DataConfig
from jaxsft.data.dataset import prepare
from jaxsft.data.loader import Loader
from jaxsft.data.mixup import halves
from jaxsft.errors import UserError
from jaxsft.scoring.table import write_scores
from tests.data.conftest import write_jsonl

COUNT = 31


@pytest.fixture
def config(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": f"{i} " * (1 + i * 7 % 9)} for i in range(COUNT)]
    return DataConfig(
        path=write_jsonl(tmp_path / "a.jsonl", rows), template="chatml", max_length=64, max_examples_per_row=6,
        cache_dir=str(tmp_path / "cache"), scores=str(tmp_path / "scores.parquet"), keep=1.0,
    )  # fmt: skip


@pytest.fixture
def scores(config, tokenizer):
    """A table for the examples, some scores equal."""
    values = -1 - np.random.default_rng(0).integers(0, 9, COUNT).astype(np.float32)
    unscored = prepare(dataclasses.replace(config, scores=""), tokenizer)
    key = {"examples": unscored.examples_fingerprint}
    write_scores(config.scores, key, np.arange(COUNT), {"confidence": values, "other": -values})
    return values


@pytest.fixture
def mixup(config, scores, tokenizer):
    """The pairs, at the row length under which examples are as long as those that were scored."""
    config = dataclasses.replace(config, grouping="mixup", max_length=128)
    return prepare(config, tokenizer, seed=3), config


def test_halves_are_equal_and_ordered(scores):
    """T9; and of equal scores the earlier example is the more confident."""
    for members in (np.arange(COUNT), np.arange(0, COUNT - 1)):
        confident, unconfident = halves(scores, members)
        assert 0 <= len(unconfident) - len(confident) <= 1
        assert scores[confident].min() >= scores[unconfident].max()
        assert sorted([*confident, *unconfident]) == members.tolist()
    assert [half.tolist() for half in halves(np.full(5, -2.0), np.arange(5))] == [[0, 1], [2, 3, 4]]


def test_an_epoch_pairs_every_example_once(mixup, scores):
    dataset, _ = mixup
    confident, unconfident = map(set, halves(scores, np.arange(COUNT)))
    left_out, partners = set(), set()
    for epoch in range(8):
        groups = dataset.epoch(epoch)
        assert groups.sizes().tolist() == [2] * (COUNT // 2)
        firsts, seconds = groups.members[::2], groups.members[1::2]
        assert set(firsts) == confident and set(seconds) < unconfident
        assert len(set(groups.members)) == COUNT - 1
        left_out |= unconfident - set(seconds)
        partners.add(int(seconds[list(firsts).index(min(confident))]))
        assert (groups.members == dataset.epoch(epoch).members).all()
    assert len(left_out) > 1 and len(partners) > 1, "another draw each epoch"


@pytest.mark.parametrize("packing", [True, False])
def test_pairs_stand_in_their_row(mixup, scores, packing):
    """T10: every batch has as many confident examples as unconfident ones."""
    dataset, config = mixup
    loader = Loader(dataset, dataclasses.replace(config, packing=packing), 2)
    for step in range(loader.steps(2.0)):
        batch = loader.batch(step)
        members, index = batch.extras["member"], batch.extras["example_index"]
        assert ((members == 0).sum(axis=1) == (members == 1).sum(axis=1)).all()
        rows, slots = np.nonzero(members == 0)
        assert (members[rows, slots + 1] == 1).all()
        assert (scores[index[rows, slots]] >= scores[index[rows, slots + 1]]).all()


def test_what_cannot_be_paired_is_refused(config, scores, tokenizer):
    config = dataclasses.replace(config, grouping="mixup", max_length=128)
    with pytest.raises(UserError, match=r"name a table of them as config\.data\.scores"):
        prepare(dataclasses.replace(config, scores=""), tokenizer).epoch(0)
    with pytest.raises(UserError, match="max_examples_per_row is 1"):
        prepare(dataclasses.replace(config, max_examples_per_row=1), tokenizer).epoch(0)
    with pytest.raises(UserError, match="needs two examples"):
        prepare(dataclasses.replace(config, keep=0.01), tokenizer).epoch(0)


def test_the_best_are_kept(config, scores, tokenizer):
    whole = prepare(config, tokenizer)
    half = prepare(dataclasses.replace(config, keep=0.5), tokenizer)
    assert half.examples_fingerprint == whole.examples_fingerprint and half.fingerprint != whole.fingerprint
    kept = half.epoch(0).members
    rest = np.setdiff1d(np.arange(COUNT), kept)
    assert len(kept) == round(COUNT / 2) and scores[kept].min() >= scores[rest].max()
    tied = scores[rest] == scores[kept].min()
    assert not tied.any() or kept[scores[kept] == scores[kept].min()].max() < rest[tied].min()
    assert len(half) == COUNT, "all are there to be scored"
    assert half.report.notices == {"left out by their confidence": COUNT - len(kept)}
    worst = prepare(dataclasses.replace(config, keep=0.5, score="other"), tokenizer).epoch(0).members
    assert scores[worst].mean() < scores[kept].mean()
    assert whole.epoch(0).members.tolist() == list(range(COUNT))


def test_tables_of_other_examples_are_refused(config, scores, tokenizer, tmp_path):
    with pytest.raises(UserError, match="stale: they were made with examples = "):
        prepare(dataclasses.replace(config, max_length=32), tokenizer)
    with pytest.raises(UserError, match=r"config\.data\.score is 'confidenc', .*did you mean 'confidence'\?"):
        prepare(dataclasses.replace(config, score="confidenc"), tokenizer)
    with pytest.raises(UserError, match=r"config\.data\.keep is 0\.5, but there is nothing to rank"):
        prepare(dataclasses.replace(config, scores="", keep=0.5), tokenizer)
    with pytest.raises(UserError, match="no scores at"):
        prepare(dataclasses.replace(config, scores=str(tmp_path / "none.parquet")), tokenizer)
    key = {"examples": prepare(config, tokenizer).examples_fingerprint}
    write_scores(config.scores, key, np.arange(3), {"confidence": scores[:3]})
    with pytest.raises(UserError, match="scores 3 examples, but the data has 31"):
        prepare(config, tokenizer)
    write_scores(config.scores, key, np.arange(COUNT), {"confidence": [np.ones(2, np.float32)] * COUNT})
    with pytest.raises(UserError, match="holds a number a token"):
        prepare(config, tokenizer)
