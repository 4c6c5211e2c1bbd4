"""Weights tried in turn for the least value of a function: a grid, or Nelder and Mead's simplex.

Where the merge divides by the sum of weights only their ratios count: they are not negative and add up to 1. Elsewhere
each lies between 0 and `most`. Nelder and Mead 1965, as SciPy has it: no gradients, no draws, so the same values lead
to the same trials.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize

from jaxsft.errors import UserError

Weights = tuple[float, ...]
DIGITS = 6  # of a weight that is tried
FIRST_STEP, SETTLED = 0.25, 1e-3  # of the first simplex, as a share of what a weight may be; and where it stops


class Space(NamedTuple):
    """The weights that may be tried.

    Attributes:
      start: tried first, such as equal ones.
      shares: whether they add up to 1.
      positive: whether none may be 0.
      most: the largest, where they do not add up to 1.
    """

    start: Weights
    shares: bool
    positive: bool = False
    most: float = 1.0

    @property
    def first(self) -> Weights:
        """`start`, as shares where that is what counts."""
        return _shares(np.asarray(self.start[:-1]) / sum(self.start)) if self.shares else _rounded(self.start)

    def holds(self, weights: Weights) -> bool:
        """Whether they may be tried."""
        least = min(weights)
        return (least > 0 if self.positive else least >= 0) and (self.shares or max(weights) <= self.most)


def minimise(kind: str, space: Space, value: Callable[[Weights], float], cells: int, budget: int) -> None:
    """Asks for the values of weights, `space.first` before all others.

    Args:
      kind: "grid" or "nelder_mead".
      space: what may be tried.
      value: what is to be least.
      cells: of the grid: into so many parts the range of a weight is cut.
      budget: `value` is asked so many times at most, repetitions not counted.

    Raises:
      UserError: for a grid of more points than the budget.
    """
    {"grid": _grid, "nelder_mead": _nelder_mead}[kind](space, value, cells, budget)


def _grid(space: Space, value: Callable[[Weights], float], cells: int, budget: int) -> None:
    found = dict.fromkeys([space.first, *filter(space.holds, _points(space, cells))])
    if len(found) > budget:
        raise UserError(
            f"config.cells = {cells} makes a grid of {len(found)} points for {len(space.start)} models, and "
            f"config.budget is {budget}; lower the one or raise the other."
        )
    for weights in found:
        value(weights)


def _points(space: Space, cells: int) -> list[Weights]:
    count = len(space.start)
    if not space.shares:
        return [_rounded(p) for p in itertools.product(np.linspace(0, space.most, cells + 1), repeat=count)]
    cuts = itertools.combinations(range(cells + count - 1), count - 1)  # bars among stars
    edges = np.array([(-1, *cut, cells + count - 1) for cut in cuts])
    return [_shares(row[:-1]) for row in (np.diff(edges) - 1) / cells]


def _nelder_mead(space: Space, value: Callable[[Weights], float], cells: int, budget: int) -> None:
    """Over all weights, of shares over all but the last."""
    asked: set[Weights] = set()
    whole = _shares if space.shares else _rounded

    def ask(x: np.ndarray) -> float:
        weights = whole(x)
        if not space.holds(weights):
            return np.inf
        if weights not in asked and len(asked) == budget:
            raise StopIteration  # SciPy's own limit counts what is asked again
        asked.add(weights)
        return value(weights)

    first = np.array(space.first[:-1] if space.shares else space.first)
    size = 1.0 if space.shares else space.most
    ask(first)
    if not len(first):
        return
    step = np.where(first + FIRST_STEP * size <= size, 1, -1) * FIRST_STEP * size
    simplex = np.vstack([first, first + np.diag(step)])
    options = {"initial_simplex": simplex, "xatol": SETTLED * size, "fatol": 0.0, "maxiter": 1000 * budget}
    try:
        optimize.minimize(ask, first, method="Nelder-Mead", options=options | {"maxfev": 1000 * budget})
    except StopIteration:
        return


def _shares(others: Sequence[float]) -> Weights:
    """The last is what the others leave."""
    first = _rounded(others)
    return (*first, round(1 - sum(first), DIGITS) + 0.0)  # + 0.0: of -0 it makes 0


def _rounded(weights: Sequence[float]) -> Weights:
    return tuple((np.round(np.asarray(weights, np.float64), DIGITS) + 0.0).tolist())
