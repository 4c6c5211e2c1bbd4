"""Which runs belong together: seeds of one config, and configs that differ in learning rate alone."""

import dataclasses
import json
import math
import os
import re
import statistics
from collections.abc import Callable
from typing import Any, TypeVar

from jaxsft.errors import UserError
from jaxsft.report.figures import Metric, headline, rate
from jaxsft.report.read import LOSS_SPLITS, Run, Series, number
from jaxsft.training.workdir import FREE  # fields that do not change a run's numbers

RATE = "optimizer.learning_rate"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value, its standard error where there is one, and the single values it is the mean of."""

    value: float
    error: float | None = None
    singles: tuple[float, ...] = ()


@dataclasses.dataclass
class Group:
    """Runs of one config that differ in their seed alone; most often just one.

    Attributes:
      name: the runs' name, or what their names share.
      runs: in the order given.
      family: number of the learning-rate family; groups of the same family differ in learning rate alone.
      shade: place within the family, from -1 (lowest rate) to 1 (highest); 0 where it is alone.
    """

    name: str
    runs: list[Run]
    family: int = 0
    shade: float = 0.0

    @property
    def learning_rate(self) -> float | None:
        """Of the config."""
        return number(flatten(self.runs[0].config).get(RATE))

    def figure(self, task: str, key: str) -> Estimate | None:
        """A task's figure over the runs.

        The standard error is the one that was measured for a single run (over its questions), and that of the mean for
        several (their standard deviation over the root of their number).
        """
        found = [(run, number(run.tasks.get(task, {}).get(key))) for run in self.runs]
        values = [value for _, value in found if value is not None]
        if len(values) == 1:
            run = next(run for run, value in found if value is not None)
            own = key in ("exact_match", "accuracy")  # the figure whose error `standard_error` is
            return Estimate(values[0], number(run.tasks[task].get("standard_error")) if own else None)
        return _mean(values)

    def part(self, task: str, split: str, name: str, key: str) -> float | None:
        """Mean over the runs of a part of a task, such as `by_source`."""
        parts = [run.tasks.get(task, {}).get(split, {}).get(name) for run in self.runs]
        values = [number(part.get(key) if isinstance(part, dict) else part) for part in parts if part is not None]
        values = [value for value in values if value is not None]
        return statistics.fmean(values) if values else None

    def last(self, split: str, name: str) -> Estimate | None:
        """The last value of a curve over the runs."""
        return _mean([value for run in self.runs if (value := run.last(split, name)) is not None])

    def curves(self, split: str, name: str) -> list[Series]:
        """One for each run that has it."""
        return [series for run in self.runs if (series := run.curves.get(split, {}).get(name))]


def _mean(values: list[float]) -> Estimate | None:
    if not values:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(statistics.fmean(values), error, tuple(values) if len(values) > 1 else ())


def make_groups(runs: list[Run], before: Run | None) -> list[Group]:
    """The runs in groups, less the baseline; families numbered from 0, in the order given, each by learning rate.

    Jobs of a comparison are of one config if they are of one case. A seed may also choose which rows of the data a run
    takes: slices of one length are the same config where seeds differ. Runs without training are never put together:
    nothing says what they share.
    """
    same = _parts(
        [run for run in runs if run is not before],
        lambda run, slices: _key(run, ("seed",), slices),
        lambda run: run.config.get("seed"),
    )
    result = [Group(_shared_name([run.name for run in members]), members) for members in same]
    families = _parts(
        result,
        lambda group, slices: _key(group.runs[0], ("seed", RATE), slices),
        lambda group: group.learning_rate,
    )
    for i, members in enumerate(families):
        members = sorted(members, key=lambda group: group.learning_rate or 0.0)
        for place, group in enumerate(members):
            group.family = i
            group.shade = 2 * place / (len(members) - 1) - 1 if len(members) > 1 else 0.0
    if len({group.name for group in result}) < len(result):  # what the names share does not tell groups apart
        for group in result:
            group.name = group.runs[0].name
    if len(result) > 1:  # what all names begin with tells nothing
        start = _common_start([group.name for group in result])
        ends = [i + 1 for i, letter in enumerate(start) if letter in "-_./="]
        begin = max((i for i in ends if all(group.name[i:][:1].isalpha() for group in result)), default=0)
        for group in result:  # a number keeps what it is of
            group.name = group.name[begin:]
    return [group for family in range(len(families)) for group in frontier(result, family)]


def _parts(items: list[T], key: Callable[[T, bool], str], mark: Callable[[T], Any]) -> list[list[T]]:
    """Items of one key together: of the key with slices where that leaves every mark once, else of the strict one."""
    loose: dict[str, list[T]] = {}
    for item in items:
        loose.setdefault(key(item, True), []).append(item)
    parts: dict[str, list[T]] = {}
    for name, members in loose.items():
        alone = len({mark(item) for item in members}) == len(members)
        for item in members:
            parts.setdefault(name if alone else key(item, False), []).append(item)
    return list(parts.values())


def frontier(groups: list[Group], family: int) -> list[Group]:
    """The groups of a family by learning rate: what a line may join."""
    return sorted((g for g in groups if g.family == family), key=lambda group: group.learning_rate or 0.0)


def family_name(groups: list[Group], family: int) -> str:
    """What the names of a family share, less a learning rate."""
    members = frontier(groups, family)
    if len(members) == 1:
        return members[0].name
    shared = _without(r"((learning[-_])?(lr|rate)[-_=]?)?(\d[\d.]*(e-?)?)?", _common_start([g.name for g in members]))
    kind = members[0].runs[0].config.get("adapter", {}).get("kind", "none")
    return shared or ("full" if kind == "none" else kind)


def choose_before(runs: list[Run], named: str = "") -> tuple[Run | None, str]:
    """The baseline, and where it comes from in words.

    It is the run that `named` points at, else the first that was not trained, else what the runs measured at step 0.
    The latter holds the values on which all runs agree that have them.
    """
    if named:
        same = [run for run in runs if os.path.normpath(run.path) == os.path.normpath(named)]
        if not same:
            raise UserError(f"--before={named} is none of --runs; name one of them.")
        return same[0], f"{same[0].name}, named by --before"
    for run in runs:
        if not run.trained and run.tasks:
            return run, f"{run.name}, which was not trained"
    first: dict[tuple[str, str], set[float]] = {}
    for run in runs:
        for split, names in run.curves.items():
            for name, series in names.items():
                if split != "train" and series[0][0] == 0:
                    first.setdefault((split, name), set()).add(round(series[0][1], 9))
    start = Run("before", "")
    for (split, name), values in first.items():
        if len(values) == 1:
            target = start.curves if split in LOSS_SPLITS else start.tasks
            value = values.pop()
            target.setdefault(split, {})[name] = [(0, value)] if split in LOSS_SPLITS else value
    if not (start.tasks or start.curves):
        return None, ""
    start.during_training = bool(start.tasks)
    return start, "step 0 of the runs"


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"optimizer.learning_rate": 1e-5, ...}; lists and empty dicts stay whole."""
    if isinstance(tree, dict) and tree:
        parts = ((f"{prefix}.{name}" if prefix else name, sub) for name, sub in tree.items())
        return {path: value for name, sub in parts for path, value in flatten(sub, name).items()}
    return {prefix: tree} if prefix else {}


def differing_fields(groups: list[Group]) -> list[str]:
    """Config fields that are not the same in all trained runs."""
    configs = [flatten(run.config) for group in groups for run in group.runs if run.trained]
    names = dict.fromkeys(name for config in configs for name in config)
    return [n for n in names if len({json.dumps(c.get(n), sort_keys=True) for c in configs}) > 1]


def label(group: Group, groups: list[Group]) -> str:
    """In a plot: the learning rate for members of a frontier, else the name."""
    joined = len(frontier(groups, group.family)) > 1
    return rate(group.learning_rate) if joined and group.learning_rate is not None else group.name


def headline_of(groups: list[Group], task: str) -> Metric | None:
    """The figure that stands for a task in these groups."""
    return next((m for g in groups for run in g.runs if (m := headline(run.tasks.get(task, {})))), None)


def _key(run: Run, without: tuple[str, ...], slices: bool = False) -> str:
    """Equal for runs that share all but these fields, and those which do not change their numbers.

    With `slices` rows that are named by start and stop count by how many they are.
    """
    if not run.trained:
        return f"not trained {run.name}"
    if run.job:  # a case may be more than its config, and its config name folders of its own
        left = {"seed": "seed", RATE: "learning_rate"}
        dropped = {left[name] for name in without}
        return json.dumps({name: value for name, value in run.job.items() if name not in dropped}, sort_keys=True)
    fields = flatten(run.config)
    kept = {
        name: value
        for name, value in fields.items()
        if name not in without and not any(name == free or name.startswith(free + ".") for free in FREE)
    }
    prints = dict(run.fingerprints)
    if slices:
        counted = {name: _counted(kept[name]) for name in ("data.rows", "data.sources") if name in kept}
        if any(kept[name] != value for name, value in counted.items()):
            kept |= counted
            prints.pop("data", None)
    return json.dumps([kept, prints], sort_keys=True)


def _counted(value: Any) -> Any:
    """How many rows a slice with a stop has, and sources with their slices so; another slice as it is."""
    if isinstance(value, list):
        return [_counted(source) for source in value]
    if isinstance(value, dict):
        return {name: _counted(part) if name == "rows" else part for name, part in value.items()}
    ends = re.fullmatch(r"(\d*):(\d+)", str(value))
    return int(ends[2]) - int(ends[1] or 0) if ends else value


def _shared_name(names: list[str]) -> str:
    """What names of seeds share: full-s0, full-s1 -> full; seed0/full, seed1/full -> full."""
    start = _common_start(names)
    if start in names:
        return start
    end = _common_start([name[::-1] for name in names])[::-1].lstrip("-_./0123456789")
    return _without(r"(seed|s)?[-_=]?\d*", start) or end or names[0]


def _common_start(names: list[str]) -> str:
    for i, letters in enumerate(zip(*names)):
        if len(set(letters)) > 1:
            return names[0][:i]
    return min(names, key=len)


def _without(ending: str, name: str) -> str:
    """Less an ending that stands behind a separator or alone."""
    return re.sub(rf"(^|[-_./=]+){ending}$", "", name)
