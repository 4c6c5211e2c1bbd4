"""Question by question: what a run lost and won against the baseline, and a few answers side by side."""

import dataclasses
from collections.abc import Iterable, Sequence

from jaxsft.report.read import Answer, Run

Key = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Change:
    """The questions of a task that both models answered, by what changed.

    Attributes:
      asked: how many both answered.
      known: how many the baseline had right.
      lost: right before, wrong now, in the order of their index.
      won: wrong before, right now.
    """

    asked: int
    known: int
    lost: list[Key]
    won: list[Key]


def change(before: Run, run: Run, task: str) -> Change:
    """What changed on a task."""
    keys = sorted(key for key in before.answers.keys() & run.answers.keys() if key[0] == task)
    right = {key for key in keys if before.answers[key].correct}
    now = {key for key in keys if run.answers[key].correct}
    return Change(len(keys), len(right), [k for k in keys if k in right - now], [k for k in keys if k in now - right])


def spread(keys: Iterable[Key], answers: dict[Key, Answer], count: int) -> list[Key]:
    """Up to `count` of the keys, one of each task type in turn, in the order given; the same every time."""
    queues: dict[str, list[Key]] = {}
    for key in keys:
        queues.setdefault(answers[key].task_type or answers[key].source, []).append(key)
    chosen: list[Key] = []
    while queues and len(chosen) < count:
        for name in sorted(queues):
            chosen.append(queues[name].pop(0))
        queues = {name: queue for name, queue in queues.items() if queue}
    return chosen[:count]


def samples(runs: Sequence[Run], task: str, count: int) -> list[Key]:
    """Questions of a task that all these runs were asked, spread over task types.

    The most contested come first, those on which the fewer side of the runs is largest: they tell runs apart.
    """
    if not runs:
        return []
    keys = sorted(set.intersection(*({key for key in run.answers if key[0] == task} for run in runs)))
    levels: dict[int, list[Key]] = {}
    for key in keys:
        right = sum(run.answers[key].correct for run in runs)
        levels.setdefault(min(right, len(runs) - right), []).append(key)
    ranked = [key for level in sorted(levels, reverse=True) for key in levels[level]]
    return spread(ranked, runs[0].answers, count)
