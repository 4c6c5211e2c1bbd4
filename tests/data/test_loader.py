import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxsft.config import DataConfig, SourceConfig
from jaxsft.data.batch import Batch
from jaxsft.data.dataset import prepare
from jaxsft.data.groups import Groups
from jaxsft.data.loader import Loader
from jaxsft.errors import UserError
from tests.data.conftest import write_jsonl

COUNT = 41


@pytest.fixture
def dataset_and_config(tmp_path, tokenizer):
    rows = [
        {"prompt": f"q{i}", "completion": f"{i} " * (1 + i * 7 % 19), "task_type": "ab"[i % 2]} for i in range(COUNT)
    ]
    config = DataConfig(
        path=write_jsonl(tmp_path / "a.jsonl", rows), template="chatml", max_length=96, max_examples_per_row=6,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    return prepare(config, tokenizer), config


def equal(a: Batch, b: Batch) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def pieces(batch: Batch):
    """(example index, inputs, targets, weights) of every example, read from the arrays alone."""
    for b in range(len(batch.tokens)):
        for slot in range(batch.num_slots):
            where = np.flatnonzero(batch.example_ids[b] == slot + 1)
            index = int(batch.extras["example_index"][b, slot])
            assert (index >= 0) == bool(len(where))
            if len(where):
                yield index, batch.tokens[b, where], batch.targets[b, where], batch.weights[b, where]


@pytest.mark.parametrize("packing", [True, False])
def test_the_schema(dataset_and_config, packing):
    dataset, config = dataset_and_config
    loader = Loader(dataset, dataclasses.replace(config, packing=packing), 4)
    assert loader.num_slots == (6 if packing else 1)
    batch = loader.batch(0)
    for name in ("tokens", "positions", "segment_ids", "example_ids", "targets"):
        assert (getattr(batch, name).shape, getattr(batch, name).dtype) == ((4, 96), np.int32)
    assert batch.weights.dtype == np.float32
    assert {k: (v.shape, v.dtype) for k, v in batch.extras.items()} == {
        name: ((4, loader.num_slots), np.int32) for name in ("example_index", "source", "task_type")
    }
    for index, tokens, targets, weights in pieces(batch):
        ids, loss_weights, extras = dataset.example(index)
        assert (tokens == ids).all()
        assert (targets == np.append(ids[1:], 0)).all()  # shifted inside the example, never across
        assert (weights == np.append(loss_weights[1:], 0)).all()
        assert extras["task_type"] == index % 2
    padding = batch.segment_ids == 0
    for name in ("tokens", "positions", "example_ids", "targets", "weights"):
        assert not getattr(batch, name)[padding].any()
    assert (np.diff(padding.astype(int), axis=1) >= 0).all()  # all of it at the end
    for b, segment in itertools.product(range(4), range(1, batch.segment_ids.max() + 1)):
        where = np.flatnonzero(batch.segment_ids[b] == segment)
        assert (batch.positions[b, where] == np.arange(len(where))).all()


def test_extras_of_a_recipe_follow_their_tokens_and_examples(dataset_and_config):
    """Floats for examples and numbers for tokens land where the weights of their targets do."""
    dataset, config = dataset_and_config

    class Scored:
        def __getattr__(self, name):
            return getattr(dataset, name)

        def extras(self, i):
            score = np.arange(dataset.lengths[i], dtype=np.float32) + 100 * i
            return {"example_index": i, "reward": i / 2, "log_prob": score}

        def example(self, i):
            return *dataset.example(i)[:2], self.extras(i)

    batch = Loader(Scored(), config, 4).batch(0)
    assert {k: (v.shape[1], v.dtype) for k, v in batch.extras.items()} == {
        "example_index": (6, np.int32), "reward": (6, np.float32), "log_prob": (96, np.float32)
    }  # fmt: skip
    for b, slot in np.argwhere(batch.extras["example_index"] >= 0):
        index = batch.extras["example_index"][b, slot]
        where = np.flatnonzero(batch.example_ids[b] == slot + 1)
        assert batch.extras["reward"][b, slot] == index / 2
        assert (batch.extras["log_prob"][b, where[:-1]] == 100 * index + np.arange(1, len(where))).all()
        assert batch.extras["log_prob"][b, where[-1]] == 0  # the last token has no target


def test_a_batch_is_a_function_of_its_step(dataset_and_config):
    dataset, config = dataset_and_config
    one, other = Loader(dataset, config, 4, seed=5), Loader(dataset, config, 4, seed=5)
    backwards = [other.batch(step) for step in reversed(range(12))]
    assert all(equal(one.batch(step), backwards[11 - step]) for step in range(12))
    assert not equal(one.batch(0), Loader(dataset, config, 4, seed=6).batch(0))


@pytest.mark.parametrize("packing", [True, False])
def test_epochs_follow_each_other_without_loss(dataset_and_config, packing):
    """Whatever the batch size, the stream holds every example once an epoch, and later epochs in another order."""
    dataset, config = dataset_and_config
    config = dataclasses.replace(config, packing=packing)
    loader = Loader(dataset, config, 1)
    rows = loader.rows()
    epochs = []
    for epoch in range(3):
        seen = [piece[0] for r in range(rows) for piece in pieces(loader.batch(epoch * rows + r))]
        assert sorted(seen) == list(range(COUNT))
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]
    wide = Loader(dataset, config, 5)
    assert wide.steps(3) == -(-3 * rows // 5)
    stream = [piece[0] for step in range(wide.steps(3)) for piece in pieces(wide.batch(step))]
    assert stream[: 3 * COUNT] == epochs[0] + epochs[1] + epochs[2]


def test_steps_are_known_before_training(dataset_and_config):
    dataset, config = dataset_and_config
    loader = Loader(dataset, config, 4)
    rows = loader.rows()
    assert loader.steps(1) == -(-rows // 4)
    assert loader.steps(2.5) == -(-(2 * rows + -(-rows // 2)) // 4)
    assert loader.steps(0) == 0


def test_fractional_mixtures_stream_whole_epochs(tmp_path, tokenizer):
    rows = [{"prompt": "q", "completion": f"{i} " * (1 + i % 9)} for i in range(30)]
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", rows) for name in "ab"]
    sources = [SourceConfig(path=path, weight=weight) for path, weight in zip(paths, (1.0, 0.3))]
    config = DataConfig(sources=sources, template="chatml", max_length=64, cache_dir=str(tmp_path / "cache"))
    loader = Loader(prepare(config, tokenizer), config, 1)
    stream = [piece[0] for step in range(loader.steps(4)) for piece in pieces(loader.batch(step))]
    assert len(stream) == 4 * 39
    for epoch in range(4):
        seen = np.bincount(stream[epoch * 39 : (epoch + 1) * 39], minlength=60)
        assert (seen[:30] == 1).all()
        assert seen[30:].sum() == 9


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_one_order(dataset_and_config, processes):
    dataset, config = dataset_and_config
    whole = Loader(dataset, config, 8).batch(3)
    shares = [Loader(dataset, config, 8, 0, i, processes).batch(3) for i in range(processes)]
    assert equal(whole, jax.tree.map(lambda *xs: np.concatenate(xs), *shares))


def test_shares_must_be_equal(dataset_and_config):
    with pytest.raises(UserError, match="6 rows cannot be split over 4 processes"):
        Loader(*dataset_and_config, 6, 0, 0, 4)


def test_iterating_resumes_anywhere(dataset_and_config):
    loader = Loader(*dataset_and_config, 4)
    batches = list(loader.iterate(5, 9))
    assert len(batches) == 4
    assert all(equal(batch, loader.batch(5 + i)) for i, batch in enumerate(batches))


def test_errors_are_not_the_end_of_data(dataset_and_config, monkeypatch):
    dataset, config = dataset_and_config
    loader = Loader(dataset, config, 4)

    def broken(i):
        raise OSError("the cache is gone")

    batches = loader.iterate(0, 3)
    next(batches)
    monkeypatch.setattr(dataset, "example", broken)
    with pytest.raises(OSError, match="the cache is gone"):
        list(loader.iterate(0, 3))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_evaluation_sees_every_example_once(dataset_and_config, packing, batch_size):
    dataset, config = dataset_and_config
    loader = Loader(dataset, dataclasses.replace(config, packing=packing), batch_size)
    batches = list(loader.evaluation_batches())
    assert sorted(piece[0] for batch in batches for piece in pieces(batch)) == list(range(COUNT))
    assert {batch.tokens.shape for batch in batches} == {(batch_size, 96)}
    halves = [list(Loader(dataset, config, 4, 0, i, 2).evaluation_batches(2)) for i in range(2)]
    assert sorted(piece[0] for half in halves for batch in half for piece in pieces(batch)) == list(range(COUNT))
    assert len(halves[0]) == len(halves[1])


def test_packing_changes_no_example(dataset_and_config):
    dataset, config = dataset_and_config
    flat = lambda loader: {
        index: (tuple(tokens), tuple(targets), tuple(weights))
        for batch in loader.evaluation_batches()
        for index, tokens, targets, weights in pieces(batch)
    }
    packed, unpacked = (Loader(dataset, dataclasses.replace(config, packing=p), 4) for p in (True, False))
    assert flat(packed) == flat(unpacked)


def test_shapes_and_counts(dataset_and_config):
    dataset, config = dataset_and_config
    loader = Loader(dataset, config, 4)
    batch = loader.batch(2)
    shapes = loader.shapes()
    assert jax.tree.all(jax.tree.map(lambda s, x: (s.shape, s.dtype) == (x.shape, x.dtype), shapes, batch))
    halves = [Loader(dataset, config, 4, 0, i, 2) for i in range(2)]
    assert all(jax.tree.leaves(half.shapes()) == jax.tree.leaves(shapes) for half in halves)
    real, supervised = int((batch.segment_ids > 0).sum()), int((batch.weights > 0).sum())
    for each in (loader, *halves):
        assert each.counts(2) == {"slots": 4 * 96, "real": real, "supervised": supervised}
    batches = list(loader.evaluation_batches())
    lengths = [np.bincount(row)[1:] for b in batches for row in b.segment_ids]
    mean = sum((row**2).sum() for row in lengths) / sum(row.sum() for row in lengths)
    assert loader.mean_unit_length == pytest.approx(mean)
    assert loader.fill_rate() == pytest.approx(dataset.lengths.sum() / (loader.rows() * 96))


@pytest.mark.parametrize("unit", ["example", "group", "row"])
def test_groups_stay_together_and_units_see_each_other(dataset_and_config, unit):
    """The examples of a group stand in one row, in order; positions go on inside an attention unit."""
    dataset, config = dataset_and_config
    dataset.epoch = lambda epoch: Groups.of(np.array([0, 1, 2, 3]), np.array([3, 1]))
    lengths = dataset.lengths[:4]
    config = dataclasses.replace(config, max_length=int(lengths.sum()), grouping="three and one", attention_unit=unit)
    loader = Loader(dataset, config, 1)
    batch = loader.batch(0)
    order = [0, 1, 2, 3] if batch.extras["example_index"][0, 0] == 0 else [3, 0, 1, 2]
    assert batch.extras["example_index"][0, :4].tolist() == order
    assert batch.extras["member"][0, :4].tolist() == [i % 3 for i in order]
    assert (batch.extras["member"][0, 4:] == -1).all()
    where = {example: np.flatnonzero(batch.example_ids[0] == slot + 1) for slot, example in enumerate(order)}
    segment = {example: batch.segment_ids[0, at][0] for example, at in where.items()}
    assert all(len(where[i]) == lengths[i] and (batch.segment_ids[0, where[i]] == segment[i]).all() for i in order)
    units = {"example": [[0], [1], [2], [3]], "group": [[0, 1, 2], [3]], "row": [order]}[unit]
    assert len(set(segment.values())) == len(units)
    for members in units:
        assert len({segment[i] for i in members}) == 1
        positions = np.concatenate([batch.positions[0, where[i]] for i in members])
        assert (positions == np.arange(len(positions))).all()
    sizes = np.array([sum(lengths[i] for i in members) for members in units])
    assert loader.mean_unit_length == pytest.approx((sizes**2).sum() / sizes.sum())


def test_a_row_can_be_one_attention_unit(dataset_and_config):
    dataset, config = dataset_and_config
    config = dataclasses.replace(config, attention_unit="row")
    loader = Loader(dataset, config, 4)
    batch = loader.batch(0)
    lengths = (batch.example_ids > 0).sum(axis=1)
    for row, length in enumerate(lengths):
        assert (batch.segment_ids[row, :length] == 1).all()
        assert (batch.segment_ids[row, length:] == 0).all()
        assert (batch.positions[row, :length] == np.arange(length)).all()
    assert batch.example_ids.max() > 1
    apart = Loader(dataset, dataclasses.replace(config, attention_unit="example"), 4)
    assert loader.mean_unit_length > apart.mean_unit_length


def test_scores_reach_the_slots_of_their_examples(dataset_and_config):
    dataset, config = dataset_and_config
    before = dataset.examples_fingerprint
    dataset.score("confidence", np.arange(len(dataset), dtype=np.float32))
    dataset.score("by_token", [np.full(n, i, np.float32) for i, n in enumerate(dataset.lengths)])
    batch = Loader(dataset, config, 4).batch(1)
    filled = batch.extras["example_index"] >= 0
    assert (batch.extras["confidence"][filled] == batch.extras["example_index"][filled]).all()
    row, column = np.argwhere(batch.weights > 0)[3]
    slot = batch.example_ids[row, column] - 1
    assert batch.extras["by_token"][row, column] == batch.extras["example_index"][row, slot]
    assert dataset.examples_fingerprint == before
    with pytest.raises(ValueError, match="scores"):
        dataset.score("confidence", np.zeros(3, np.float32))
