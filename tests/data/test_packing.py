import time

import numpy as np
import pytest

from jaxsft.data.packing import plan


def row_lengths(table, lengths):
    return [int(lengths[table.row(r)].sum()) for r in range(table.num_rows)]


def lognormal(count: int, limit: int, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).lognormal(4.5, 0.9, count), 1, limit).astype(np.int64)


@pytest.mark.parametrize("packing", [True, False])
def test_every_group_is_placed_once_within_the_row(packing):
    lengths = lognormal(1000, 512)
    table = plan(lengths, 512, seed=1, epoch=2, packing=packing)
    assert sorted(table.groups) == list(range(1000))
    assert table.starts[0] == 0
    assert table.starts[-1] == 1000
    assert (np.diff(table.starts) > 0).all()
    assert max(row_lengths(table, lengths)) <= 512


def test_best_fit_decreasing_by_hand():
    # 7 opens a row (3 left), 5 one (5 left), 4 fits only the second (1 left), 3 fills the first, 1 fills the second.
    table = plan(np.array([1, 3, 4, 5, 7]), 10, shuffle=False)
    assert sorted(sorted(table.row(r).tolist()) for r in range(table.num_rows)) == [[0, 2, 3], [1, 4]]


def reference_best_fit(lengths, limit):
    """The textbook loop: the fullest row that still takes the item."""
    rows = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, used in enumerate(rows) if used + length <= limit]
        if fitting:
            rows[max(fitting, key=lambda i: rows[i])] += length
        else:
            rows.append(length)
    return sorted(rows)


@pytest.mark.parametrize("seed", range(5))
def test_as_full_as_the_textbook_loop(seed):
    lengths = lognormal(300, 128, seed)
    table = plan(lengths, 128, seed=seed, max_examples=10**6)
    assert sorted(row_lengths(table, lengths)) == reference_best_fit(lengths.tolist(), 128)


def test_a_pure_function_that_seed_and_epoch_change():
    lengths = lognormal(500, 256)
    same, again = plan(lengths, 256, seed=3, epoch=1), plan(lengths, 256, seed=3, epoch=1)
    assert (same.groups == again.groups).all()
    assert (same.starts == again.starts).all()
    for other in (plan(lengths, 256, seed=3, epoch=2), plan(lengths, 256, seed=4, epoch=1)):
        assert other.num_rows == same.num_rows  # steps are known before training
        together = lambda t: {frozenset(t.row(r).tolist()) for r in range(t.num_rows)}
        assert together(other) != together(same)


def test_rows_are_not_sorted_by_length():
    lengths = lognormal(5000, 512)
    table = plan(lengths, 512, max_examples=8)
    longest = np.array([lengths[table.row(r)].max() for r in range(table.num_rows)])
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.1


def test_examples_of_a_row_are_bounded():
    lengths = np.ones(1000, np.int64)
    table = plan(lengths, 100, max_examples=8)
    assert table.num_rows == 125
    assert np.diff(table.starts).max() == 8
    pairs = plan(lengths * 4, 100, max_examples=9, sizes=np.full(1000, 2))
    assert np.diff(pairs.starts).max() == 4  # groups of two examples: four groups are eight examples


def test_without_shuffling_rows_follow_the_data():
    lengths = np.array([5, 5, 5, 5])
    table = plan(lengths, 10, shuffle=False)
    assert [table.row(r).tolist() for r in range(2)] == [[0, 1], [2, 3]]
    assert plan(lengths, 10, shuffle=False, packing=False).groups.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("lengths", "options"), [([0, 3], {}), ([11], {}), ([5], {"sizes": np.array([3]), "max_examples": 2})]
)
def test_impossible_lengths_are_refused(lengths, options):
    with pytest.raises(ValueError):
        plan(np.array(lengths), 10, **options)


def test_no_groups_no_rows():
    assert plan(np.zeros(0, np.int64), 10).num_rows == 0


def test_a_million_examples_take_seconds():
    lengths = lognormal(1_000_000, 2048)
    began = time.perf_counter()
    table = plan(lengths, 2048, max_examples=256)
    seconds = time.perf_counter() - began
    assert lengths.sum() / (table.num_rows * 2048) > 0.995
    assert seconds < 20  # about 2 s on an idle core
