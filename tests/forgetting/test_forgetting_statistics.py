"""Intervals cover what they promise, p-values are the binomial's own, and corrections are Holm's."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from jaxsft.forgetting.differences import of_examples
from jaxsft.forgetting.statistics import (
    Marks,
    changed,
    figures,
    holm,
    interval,
    mcnemar,
    normal_interval,
    ratio_error,
)  # fmt: skip


def drawn(random, n, copies=1):
    """Marks of n distinct questions asked `copies` times each; the true difference is 0.6 * 0.85 + 0.4 * 0.3 - 0.6."""
    base = random.random(n) < 0.6
    tuned = random.random(n) < np.where(base, 0.85, 0.3)
    repeat = lambda values: np.repeat(values, copies).astype(float)
    return Marks(repeat(base), repeat(tuned), np.repeat(np.arange(n), copies))


TRUTH = 0.6 * 0.85 + 0.4 * 0.3 - 0.6


@pytest.mark.parametrize("copies", [1, 4])
def test_intervals_cover_the_true_difference_as_often_as_they_promise(copies):
    random, runs = np.random.default_rng(1), 400
    covered = 0
    for seed in range(runs):
        low, high = interval(drawn(random, 150, copies), draws=1000, seed=seed)
        covered += low <= TRUTH <= high
    # three standard errors of a share of 0.95 in 400 runs, and a point for the bootstrap's own bias at 150 questions
    assert abs(covered / runs - 0.95) < 3 * math.sqrt(0.95 * 0.05 / runs) + 0.01


def test_intervals_that_take_copies_for_questions_would_not():
    random, runs = np.random.default_rng(1), 200
    covered = 0
    for seed in range(runs):
        marks = drawn(random, 150, 4)
        low, high = interval(marks._replace(same=np.arange(600)), draws=1000, seed=seed)
        covered += low <= TRUTH <= high
    assert covered / runs < 0.8


def test_the_interval_of_two_questions_is_that_of_all_four_draws():
    marks = Marks(np.array([1.0, 0.0]), np.array([0.0, 0.0]), np.arange(2))
    # twice the lost one (1/4), each once (1/2), twice the other (1/4)
    assert interval(marks, confidence=0.4) == (-0.5, -0.5)
    assert interval(marks, confidence=0.6) == (-1.0, 0.0)


def test_intervals_are_the_same_for_a_seed_and_do_not_depend_on_the_order():
    marks = drawn(np.random.default_rng(3), 80)
    order = np.random.default_rng(4).permutation(80)
    assert interval(marks, seed=5) == interval(marks.at(order), seed=5)
    assert interval(marks, draws=50, seed=5) != interval(marks, draws=50, seed=6)


def test_graded_marks_are_drawn_in_parts(monkeypatch):
    """As many different rows as questions: what is drawn at once is bounded, and the law is the same."""
    random = np.random.default_rng(0)
    marks = Marks(random.random(300), random.random(300), np.arange(300))
    spread = stats.sem(marks.model - marks.base)
    whole = interval(marks, draws=4000)
    monkeypatch.setattr("jaxsft.forgetting.statistics.MOST_COUNTS", 300 * 7)
    parts = interval(marks, draws=4000)
    for low, high in (whole, parts):
        assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.08)


def test_a_ratio_counts_what_each_model_counts():
    # the base counts two questions, of which one is right; the model three, of which one
    marks = Marks(
        np.array([1.0, 0, 0, 0]),
        np.array([0.0, 1, 0, 0]),
        np.arange(4),
        np.array([1.0, 1, 0, 0]),
        np.array([1.0, 1, 1, 0]),
    )
    assert figures(marks) == (1 / 2, pytest.approx(1 / 3))
    assert changed(marks) == (1, 1)


def test_nothing_that_counts_is_no_number():
    assert all(math.isnan(value) for value in interval(Marks(*np.zeros((3, 0)))))
    nothing = Marks(np.zeros(2), np.zeros(2), np.arange(2), np.zeros(2), np.ones(2))
    assert math.isnan(figures(nothing)[0]) and math.isnan(interval(nothing)[0])


def test_copies_are_lost_once():
    marks = Marks(np.array([1.0, 1, 0, 0]), np.array([0.0, 0, 1, 0]), np.array([7, 7, 8, 9]))
    assert changed(marks) == (1, 1)
    assert figures(marks) == (0.5, 0.25), "but count as often as they are asked"


def test_errors_of_ratios_are_those_of_means_where_weights_are_equal():
    values = np.random.default_rng(0).normal(2, 3, 50)
    mean = values.mean()
    assert ratio_error(values - mean, np.ones(50)) == pytest.approx(stats.sem(values))
    low, high = normal_interval(mean, stats.sem(values), 0.9)
    assert (low, high) == pytest.approx(stats.norm.interval(0.9, mean, stats.sem(values)))
    assert math.isnan(ratio_error(np.zeros(1), np.ones(1)))
    sums = {"log_ratio_sum": np.array([2.0, 9, 28, 3]), "weight_sum": np.array([1.0, 3, 7, 0])}  # 2, 3 and 4 a token
    ends = stats.norm.interval(0.9, 3, stats.sem([2, 3, 4]))
    assert of_examples("deviation", {}, sums, 3.0, 0.9) == pytest.approx(ends), "every example counts as much"


def test_intervals_of_likelihoods_cover_what_they_promise():
    """Examples of unequal length, both models' losses of one share noise; true figures from very many of them."""

    def drawn(random, n):
        weights = random.integers(1, 30, n).astype(float)
        base = weights * random.normal(2, 0.3, n)
        return weights, base, base + weights * random.normal(0.1, 0.2, n) + 0.2

    random, runs = np.random.default_rng(2), 400
    weights, base, tuned = drawn(random, 400_000)
    ratio = lambda values, weights: values.sum() / weights.sum()
    nll = [ratio(values, weights) for values in (base, tuned)]
    truth = {"nll_per_token": nll[1] - nll[0], "perplexity": np.exp(nll[1]) - np.exp(nll[0]), "kl_per_token": nll[1]}
    truth["deviation"] = (tuned / weights).mean()
    covered = dict.fromkeys(truth, 0)
    for _ in range(runs):
        weights, base, tuned = drawn(random, 200)
        nll = [ratio(values, weights) for values in (base, tuned)]
        sides = [{"nll_sum": values, "weight_sum": weights} for values in (base, tuned)]
        sides[1] |= {"kl_sum": tuned, "log_ratio_sum": tuned}
        found = {"nll_per_token": nll[1] - nll[0], "perplexity": np.exp(nll[1]) - np.exp(nll[0])}
        found |= {"kl_per_token": nll[1], "deviation": (tuned / weights).mean()}
        for name, value in found.items():
            low, high = of_examples(name, *sides, value, 0.95)
            covered[name] += low <= truth[name] <= high
    for count in covered.values():
        assert abs(count / runs - 0.95) < 3 * math.sqrt(0.95 * 0.05 / runs) + 0.005


def test_figures_that_no_interval_is_for():
    sums = {"nll_sum": np.ones(3), "weight_sum": np.ones(3)}
    assert of_examples("tokens", sums, sums, 1.0, 0.95) == (None, None)
    assert of_examples("nll_per_token", {}, sums, 1.0, 0.95) == (None, None)
    other = {"nll_sum": np.ones(2), "weight_sum": np.ones(2)}
    assert of_examples("perplexity", other, sums, 1.0, 0.95) == (None, None), "other examples"
    assert of_examples("kl_per_token", {}, {}, 1.0, 0.95) == (None, None)


@pytest.mark.parametrize("lost, won", [(0, 0), (0, 6), (1, 8), (5, 5), (9, 3), (30, 12)])
def test_mcnemar_is_the_two_sided_binomial(lost, won):
    n, k = lost + won, min(lost, won)
    tail = sum(Fraction(math.comb(n, i), 2**n) for i in range(k + 1))
    assert mcnemar(lost, won) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-12)


def test_mcnemar_of_one_and_eight():
    assert mcnemar(1, 8) == pytest.approx(20 / 512), "the textbook's sum: 2 (1 + 9) / 2^9"


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == [1.0, 1.0] and holm([]) == [] and holm([0.04]) == [0.04]
