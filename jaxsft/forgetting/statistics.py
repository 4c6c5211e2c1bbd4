"""Differences between two models that answered the same questions, and how sure they are.

A figure is sum_i w_i v_i / sum_i w_i over questions i, with v_i the mark of the answer (0 or 1, or anything between)
and w_i whether it counts: 1 for most tasks, where the figure is the mean mark.

Interval: the paired percentile bootstrap (Efron and Tibshirani 1993, chapter 13). Questions are drawn with replacement,
each with the answers of both models, and the difference of the figures is taken anew for every draw. A question that a
task asks several times in the same words is drawn as one: two copies of it tell no more than one.

p: McNemar's exact test. Of the questions that the models answer differently, as many should be lost as won if both were
as good: two-sided binomial with 1/2 (McNemar 1947). Copies count once here too. Of graded marks it is the sign test.

Likelihoods, as sums over examples, get symmetric intervals from the linearised standard error of their ratio. There are
many examples, and what one weighs is seen at once, so that nothing need be drawn; differences are paired here too.

Several subjects: Holm's step-down correction (Holm 1979), which bounds the chance that even one subject is called
changed that is not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

MOST_COUNTS = 4_000_000  # numbers of a bootstrap that exist at once


class Marks(NamedTuple):
    """Both models' marks on the same questions.

    Attributes:
      base: float64 [questions], the base's marks.
      model: likewise, the fine-tuned model's.
      same: int64 [questions], equal for questions that are asked in the same words.
      base_counts: float64 [questions], the base's weights; None is 1 for all.
      model_counts: likewise.
    """

    base: np.ndarray
    model: np.ndarray
    same: np.ndarray
    base_counts: np.ndarray | None = None
    model_counts: np.ndarray | None = None

    def at(self, places: np.ndarray) -> "Marks":
        """Those of some questions."""
        return Marks(*(None if values is None else values[places] for values in self))

    def sums(self) -> np.ndarray:
        """float64 [distinct questions, 4]: of each the base's sum of marks and of weights, then the model's."""
        ones = np.ones(len(self.base))
        base_counts = ones if self.base_counts is None else self.base_counts
        model_counts = ones if self.model_counts is None else self.model_counts
        columns = (self.base * base_counts, base_counts, self.model * model_counts, model_counts)
        names, place = np.unique(self.same, return_inverse=True)
        return np.stack([np.bincount(place, column, len(names)) for column in columns], axis=1)


def figures(marks: Marks) -> tuple[float, float]:
    """The base's figure and the model's; nan where nothing counts."""
    base, base_counts, model, model_counts = marks.sums().sum(axis=0)
    return _ratio(base, base_counts), _ratio(model, model_counts)


def interval(marks: Marks, draws: int = 10_000, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The bootstrap interval of the model's figure less the base's; see the module's docstring.

    Equal rows of sums are drawn together, as the counts of a multinomial, which is the same law and needs no more
    memory than there are different rows. (nan, nan) without questions, and where nothing counts in some draw.

    Args:
      marks: of the questions.
      draws: how often they are drawn.
      confidence: the share of draws inside.
      seed: of the draws; the same for every interval, so that none depends on which others are made.
    """
    sums = marks.sums()
    if not len(sums):
        return np.nan, np.nan
    rows, counts = np.unique(sums, axis=0, return_counts=True)
    random, at_once = np.random.default_rng(seed), max(1, MOST_COUNTS // len(rows))
    sizes = [min(at_once, draws - begin) for begin in range(0, draws, at_once)]
    share = counts / counts.sum()
    drawn = np.concatenate([random.multinomial(counts.sum(), share, size=size) @ rows for size in sizes])
    with np.errstate(invalid="ignore", divide="ignore"):
        differences = drawn[:, 2] / drawn[:, 3] - drawn[:, 0] / drawn[:, 1]
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, (tail, 1 - tail))
    return float(low), float(high)


def ratio_error(parts: np.ndarray, weights: np.ndarray) -> float:
    """The standard error of a ratio of sums over examples, by linearisation (Cochran 1977, section 6.4).

    Args:
      parts: float64 [examples], each example's v_i - r w_i, where r = sum v / sum w.
      weights: float64 [examples], w_i.

    Returns:
      sqrt(n / (n - 1) sum_i parts_i^2) / sum_i w_i; nan for fewer than two examples.
    """
    count = len(parts)
    return float(np.sqrt(count / (count - 1) * np.square(parts).sum()) / weights.sum()) if count > 1 else float("nan")


def normal_interval(value: float, error: float, confidence: float) -> tuple[float, float]:
    """The symmetric interval of a normal law around a value."""
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * error
    return value - half, value + half


def changed(marks: Marks) -> tuple[int, int]:
    """How many distinct questions were lost and won: of those that count for both models, what one has more of."""
    base, base_counts, model, model_counts = marks.sums().T
    both = (base_counts > 0) & (model_counts > 0)
    gained = model[both] / model_counts[both] - base[both] / base_counts[both]
    return int((gained < 0).sum()), int((gained > 0).sum())


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p of McNemar's test; 1 where nothing changed."""
    return float(min(1.0, 2 * stats.binom.cdf(min(lost, won), lost + won, 0.5)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p of several hypotheses, in their order."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def _ratio(total: float, counts: float) -> float:
    return float(total / counts) if counts else float("nan")
