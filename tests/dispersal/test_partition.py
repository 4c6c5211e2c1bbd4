"""Cutting items into parts: the parts of a partition, and what each way of cutting promises."""

import numpy as np
import pytest

from jaxsft.dispersal import partition
from jaxsft.errors import UserError


@pytest.mark.parametrize(("count", "parts"), [(10, 3), (12, 4), (5, 5), (1001, 4)])
def test_a_permutation_is_cut_into_equal_parts(count, parts):
    assignment = partition.permuted(count, parts, seed=1)
    sizes = np.bincount(assignment, minlength=parts)
    assert sizes.sum() == count and sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(assignment, partition.permuted(count, parts, seed=1))
    assert count < 10 or (assignment != partition.permuted(count, parts, seed=2)).any()
    assert count < 10 or (np.diff(assignment) != 0).mean() > 0.4, "neighbours stay together"


def test_independent_draws_are_even_on_average():
    assignment = partition.independent(40_000, 4, seed=0)
    sizes = np.bincount(assignment)
    assert sizes.std() > 0 and np.abs(sizes - 10_000).max() < 5 * np.sqrt(40_000 * 3 / 16)


def test_names_stay_together_and_fill_the_emptiest_part():
    ids = np.repeat([0, 1, 2, 3, 5], [50, 30, 25, 10, 1])  # no item of name 4
    names = ["a", "b", "c", "d", "e", "f"]
    assignment, held = partition.by_name(ids, names, 2)
    assert held == [["a", "d"], ["b", "c", "f"]]
    assert [np.bincount(assignment).tolist(), *(set(assignment[ids == i]) for i in (0, 1))] == [[60, 56], {0}, {1}]
    assert partition.by_name(ids, names, 0)[1] == [["a"], ["b"], ["c"], ["d"], ["f"]]
    with pytest.raises(UserError, match=r"has 5 names .* which do not fill 6 parts"):
        partition.by_name(ids, names, 6)


def blobs(count: int = 90, spread: float = 0.05, seed: int = 0) -> np.ndarray:
    """Points around three directions of the plane, in turn."""
    middles = np.array([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])
    return middles[np.arange(count) % 3] + spread * np.random.default_rng(seed).normal(size=(count, 2))


def test_kmeans_finds_blobs():
    assignment, centroids = partition.kmeans(blobs(), 3, seed=0)
    assert all(len(set(assignment[i::3])) == 1 for i in range(3)) and len(set(assignment)) == 3
    for part in range(3):
        mean = partition.normalised(blobs())[assignment == part].mean(axis=0)
        np.testing.assert_allclose(centroids[part], mean, atol=1e-5)


def test_every_item_is_at_its_nearest_centroid():
    vectors = np.random.default_rng(0).normal(size=(500, 8))
    assignment, centroids = partition.kmeans(vectors, 5, seed=3)
    away = np.linalg.norm(partition.normalised(vectors)[:, None] - centroids, axis=-1)
    np.testing.assert_array_equal(assignment, away.argmin(axis=1))
    assert partition.nearest(np.zeros((1, 2), np.float32), np.array([[1.0, 0], [0, 1]])).tolist() == [0], "a tie"


def test_the_lengths_of_vectors_say_nothing():
    scales = np.random.default_rng(1).uniform(0.1, 10, (90, 1))
    once, again = (partition.kmeans(v, 3, seed=0)[0] for v in (blobs(), scales * blobs()))
    np.testing.assert_array_equal(once, again)


def test_balanced_clusters_have_equal_sizes_at_low_cost():
    vectors = blobs(100, spread=0.6)
    assignment, centroids = partition.kmeans(vectors, 3, seed=0, balanced=True)
    sizes = np.bincount(assignment)
    assert sizes.max() - sizes.min() <= 1
    costs = partition.distances(partition.normalised(vectors), centroids)
    cost = costs[np.arange(100), assignment].sum()
    at_random = costs[np.arange(100), partition.permuted(100, 3, 0)].sum()
    assert costs.min(axis=1).sum() <= cost < 0.5 * at_random


def test_even_parts_of_one_choice():
    """Two items want part 0, which has room for one: the one that loses more gets it."""
    np.testing.assert_array_equal(partition.even(np.array([[0.0, 1.0], [0.0, 5.0]])), [1, 0])


def test_vectors_that_cannot_be_clustered():
    with pytest.raises(UserError, match="fewer than 3 different directions"):
        partition.kmeans(np.array([[1.0, 0], [2.0, 0], [0, 1.0]]), 3, seed=0)
    with pytest.raises(UserError, match="vector 1 is zero or not finite"):
        partition.kmeans(np.array([[1.0, 0], [0, 0.0], [0, 1.0]]), 2, seed=0)
