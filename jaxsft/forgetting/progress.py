"""What a run measured on its way: when the tax appears, and how fast.

A run that measures tasks while it trains (`config.eval.tasks`) leaves a line of `metrics.jsonl` for each measurement.
The slope is that of the least-squares line over the measurements, for 100 steps: over all of them, over the first half
of the run and over its second half.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxsft.evaluation.papers.instruction_following import first_stop
from jaxsft.report.figures import headline
from jaxsft.report.read import LOSS_SPLITS, Series, read_run

PER = 100  # steps


@dataclasses.dataclass(frozen=True)
class Progress:
    """A task of a run on its way.

    Attributes:
      model: the run's name.
      task: the task's.
      metric: what is measured.
      points: (step, value), in order.
      slope: for 100 steps, over all points; None for fewer than two steps.
      early: likewise, over the points of the first half of the run.
      late: over those of the second half, the middle belonging to both.
      best: the step of the best value, the first of equals; None of a metric of which neither more nor less is better.
      stop: of an instruction-following score, the step at which `first_stop` would have ended the run; else None.
    """

    model: str
    task: str
    metric: str
    points: Series
    slope: float | None
    early: float | None
    late: float | None
    best: int | None
    stop: int | None = None


def read_progress(path: str, name: str) -> list[Progress]:
    """Of a run's workdir; [] for a model that is none, or a run that measured no task at more than one step.

    Raises:
      UserError: for a metrics.jsonl that cannot be read.
    """
    if not (Path(path) / "metrics.jsonl").exists():
        return []
    found = []
    for task, curves in read_run(path, name).curves.items():
        kind = None if task in LOSS_SPLITS else headline({metric: series[-1][1] for metric, series in curves.items()})
        if kind is None or len(points := curves[kind.key]) < 2:
            continue
        middle = (points[0][0] + points[-1][0]) / 2
        early, late = [p for p in points if p[0] <= middle], [p for p in points if p[0] >= middle]
        slopes = (slope(points), slope(early), slope(late))
        stop = first_stop(points) if kind.key == "ifs" else None
        found.append(Progress(name, task, kind.key, points, *slopes, _best(points, kind.higher_is_better), stop))
    return found


def _best(points: Series, higher_is_better: bool | None) -> int | None:
    if higher_is_better is None:
        return None
    return (max if higher_is_better else min)(points, key=lambda point: point[1])[0]


def slope(points: Sequence[tuple[int, float]]) -> float | None:
    """Of the least-squares line, for 100 steps; None for points of fewer than two steps."""
    steps, values = np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)
    if len(set(steps.tolist())) < 2:
        return None
    centred = steps - steps.mean()
    return float(PER * (centred @ values) / (centred @ centred))
