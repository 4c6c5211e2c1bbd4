"""What the page says: its tasks, its verdict, its tables, as plain values for the template."""

import dataclasses
import math
from typing import Any

from jaxsft.report.figures import MISSING, SECOND, Metric, difference, metric, rate, write
from jaxsft.report.groups import Estimate, Group, differing_fields, flatten, headline_of
from jaxsft.report.ink import BEFORE, Ink, ink
from jaxsft.report.read import LOSS_SPLITS, Run, number

FEW = 3  # groups that the verdict speaks of one by one
KEPT_WORDS = ("knowledge", "cloze", "kept", "retention")


@dataclasses.dataclass
class Story:
    """All that the page is made from.

    Attributes:
      runs: every run, the baseline included where it is one of them.
      groups: the runs in groups, less the baseline.
      before: the baseline as a group, or None.
      before_from: where it comes from, in words.
      learnt: the task that stands for what was learnt, or "".
      kept: the task that stands for what was known before, or "".
      remarks: sentences on how these were chosen.
    """

    runs: list[Run]
    groups: list[Group]
    before: Group | None
    before_from: str
    learnt: str
    kept: str
    remarks: list[str]

    @property
    def all_groups(self) -> list[Group]:
        """The baseline first."""
        return ([self.before] if self.before else []) + self.groups

    def metric(self, task: str) -> Metric | None:
        """The figure that stands for a task."""
        return headline_of(self.all_groups, task)

    def tasks(self) -> list[str]:
        """Every task: what is learnt, what is kept, the others in the order of the data."""
        found = dict.fromkeys(task for group in self.all_groups for run in group.runs for task in run.tasks)
        return [t for t in (self.learnt, self.kept) if t] + [t for t in found if t not in (self.learnt, self.kept)]

    def ink(self, group: Group) -> Ink:
        """A group's colour."""
        return BEFORE if group is self.before else ink(group.family, group.shade)


def choose_tasks(runs: list[Run], learnt: str, kept: str) -> tuple[str, str, list[str]]:
    """The tasks of the trade-off, and what to say about them.

    A name that no run has gives way: for `learnt` to the first task measured by exact match or accuracy, for `kept` to
    the first whose name speaks of knowledge, else one of multiple choice.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, figures in run.tasks.items():
            tasks.setdefault(name, figures)
    remarks = []
    speaks = [name for name in tasks if any(word in name.lower() for word in KEPT_WORDS)]
    generated = [name for name in tasks if "exact_match" in tasks[name]]
    chosen = [name for name in tasks if "accuracy" in tasks[name]]
    if kept not in tasks:
        others = [n for n in [*speaks, *chosen] if n != learnt]
        remarks.append(_instead("kept", kept, others[0] if others else "", bool(tasks)))
        kept = others[0] if others else ""
    if learnt not in tasks:
        others = [n for n in [*generated, *chosen] if n != kept and n not in speaks]
        remarks.append(_instead("learnt", learnt, others[0] if others else "", bool(tasks)))
        learnt = others[0] if others else ""
    return learnt, kept, [remark for remark in remarks if remark]


def _instead(role: str, wanted: str, taken: str, any_tasks: bool) -> str:
    if not any_tasks:
        return ""
    if taken:
        return f"No run has a task named {wanted!r}; {taken!r} stands for what was {role} (--{role}=TASK chooses)."
    return f"No run has a task named {wanted!r} or one that could stand for what was {role} (--{role}=TASK chooses)."


def verdict(story: Story) -> list[dict[str, Any]]:
    """One clause for the group that learnt most, one for the group that kept most if that is another, and one for each
    other where they are few.

    Returns:
      Dicts of `name`, `ink`, `role` (what it is best at; "" where there is but one group) and `moves`, each of which
      has `what`, `before` and `after` as texts. Empty where no group has a figure.
    """
    groups = [group for group in story.groups if any(run.trained for run in group.runs)] or story.groups
    clauses = []
    for role, task in (("learns most", story.learnt), ("keeps most", story.kept)):
        kind = story.metric(task) if task else None
        measured = [g for g in groups if kind and g.figure(task, kind.key)]
        if not measured:
            continue
        sign = -1 if kind.higher_is_better is False else 1
        best = max(measured, key=lambda g: sign * g.figure(task, kind.key).value)
        figures = {group.name: group.figure(task, kind.key) for group in measured}
        near = [name for name, figure in figures.items() if name != best.name and _tied(figure, figures[best.name])]
        if near:
            role += f" ({near[0] if len(near) == 1 else f'{len(near)} others'} within a standard error)"
        if all(clause["name"] != best.name for clause in clauses):
            clauses.append({"name": best.name, "ink": story.ink(best), "role": role, "moves": _moves(story, best)})
    told = {clause["name"] for clause in clauses}
    if clauses and len(groups) <= FEW:
        others = [group for group in groups if group.name not in told and _moves(story, group)]
        clauses += [{"name": g.name, "ink": story.ink(g), "role": "", "moves": _moves(story, g)} for g in others]
    losses = [(loss.value, group) for group in groups if (loss := group.last("eval", "loss"))]
    if not clauses and losses:
        _, best = min(losses, key=lambda pair: pair[0])
        start = story.before.last("eval", "loss") if story.before else None
        move = _move("held-out loss", start, best.last("eval", "loss"), metric("loss"))
        clauses.append({"name": best.name, "ink": story.ink(best), "role": "", "moves": [move]})
    if len(groups) == 1:
        for clause in clauses:
            clause["role"] = ""
    return clauses


def _tied(one: Estimate, other: Estimate) -> bool:
    """Whether the difference is below its standard error."""
    return abs(one.value - other.value) <= math.hypot(one.error or 0.0, other.error or 0.0)


def _moves(story: Story, group: Group) -> list[dict[str, str]]:
    moves = []
    for task in (story.learnt, story.kept):
        kind = story.metric(task) if task else None
        after = group.figure(task, kind.key) if kind else None
        if after is not None:
            start = story.before.figure(task, kind.key) if story.before else None
            moves.append(_move(f"{kind.label} on {task}", start, after, kind))
    return moves


def _move(what: str, before: Estimate | None, after: Estimate, kind: Metric) -> dict[str, str]:
    start = write(before.value, kind, 0, unit=True) if before else ""
    return {"what": what, "before": start, "after": write(after.value, kind, 0, unit=True)}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table of figures: a figure of a task, or of a split of the metrics (a loss)."""

    task: str
    kind: Metric
    role: str = ""
    chance: float | None = None

    def figure(self, group: Group) -> Estimate | None:
        """The group's."""
        return (
            group.last(self.task, self.kind.key) if self.task in LOSS_SPLITS else group.figure(self.task, self.kind.key)
        )


def columns(story: Story) -> list[Column]:
    """What is learnt, what is kept, the other tasks, the loss on held-out data, and what else was measured of tasks."""
    result, second = [], []
    for task in story.tasks():
        head = story.metric(task)
        if head is None:
            continue
        parts = [run.tasks.get(task, {}) for group in story.all_groups for run in group.runs]
        chance = next((c for part in parts if (c := number(part.get("chance"))) is not None), None)
        role = "learnt" if task == story.learnt else "kept" if task == story.kept else ""
        result.append(Column(task, head, role, chance))
        for key in SECOND:
            if key != head.key and any(number(part.get(key)) is not None for part in parts):
                second.append(Column(task, metric(key)))
    if any(group.last("eval", "loss") for group in story.groups):
        result.append(Column("eval", metric("loss")))
    return result + second


def figures_table(story: Story, groups: list[Group], cols: list[Column]) -> list[dict[str, Any]]:
    """Rows of `name`, `ink`, `note`, `cells`: value, error, delta, whether that is better, whether it is the best."""
    best = {}
    trained = [group for group in groups if group is not story.before]
    for column in cols:
        values = {f.value for group in trained if (f := column.figure(group))}
        if column.kind.higher_is_better is not None and len(values) > 1:
            best[column] = (max if column.kind.higher_is_better else min)(values)
    rows = []
    for group in groups:
        cells = [_cell(story, group, column, best.get(column)) for column in cols]
        row = {"name": group.name, "ink": story.ink(group), "cells": cells, "before": group is story.before}
        rows.append(row | {"note": _note(group, group is story.before)})
    return rows


def _cell(story: Story, group: Group, column: Column, best: float | None) -> dict[str, Any]:
    figure = column.figure(group)
    if figure is None:
        return {"value": MISSING, "error": "", "delta": "", "trend": "", "best": False}
    start = column.figure(story.before) if story.before and group is not story.before else None
    delta = figure.value - start.value if start else None
    text, trend = difference(delta, column.kind, figure.value), ""
    if delta and column.kind.higher_is_better is not None and not text.startswith("±"):
        trend = "better" if (delta > 0) == column.kind.higher_is_better else "worse"
    return {
        "value": write(figure.value, column.kind),
        "error": write(figure.error, column.kind, like=figure.value) if figure.error is not None else "",
        "delta": text,
        "trend": trend,
        "best": figure.value == best,
    }


def _note(group: Group, is_before: bool) -> str:
    notes = ["before training"] if is_before else []
    if len(group.runs) > 1:
        notes.append(f"{len(group.runs)} seeds")
    unfinished = [run for run in group.runs if run.trained and not run.summary]
    if unfinished:
        notes.append("not finished" if unfinished == group.runs else f"{len(unfinished)} not finished")
    if any(run.during_training for run in group.runs) and not is_before:
        notes.append("measured while training")
    return ", ".join(notes)


def parts_table(story: Story, task: str, split: str) -> dict[str, Any] | None:
    """A task's figure by family (`by_task_type`) or source (`by_source`): a row a part, a column a group.

    Returns:
      `title`, `heads` of the columns and `rows` of `name` and `cells` (text, tint from 0 to 1); None where no
      run has at least two parts. Parts are in falling order of their mean over the trained runs.
    """
    kind = story.metric(task)
    groups = [g for g in story.all_groups if any(run.tasks.get(task, {}).get(split) for run in g.runs)]
    names = dict.fromkeys(name for g in groups for run in g.runs for name in run.tasks.get(task, {}).get(split, {}))
    if kind is None or len(names) < 2:
        return None
    values = {name: [group.part(task, split, name, kind.key) for group in groups] for name in names}
    known = [v for row in values.values() for v in row if v is not None]
    if not known:
        return None
    low, high = (0.0, 1.0) if kind.share else (min(known), max(known))
    span = high - low or 1.0
    rows = []
    for name, row in sorted(values.items(), key=lambda item: -_mean_of(item[1], groups, story)):
        tints = [None if v is None else (v - low) / span for v in row]
        rows.append({"name": name, "cells": [{"text": write(v, kind, 0), "tint": t} for v, t in zip(row, tints)]})
    heads = [{"name": group.name, "ink": story.ink(group)} for group in groups]
    by = {"by_task_type": "family", "by_source": "source"}[split]
    return {"title": f"{task} by {by}: {kind.label}{', %' if kind.share else ''}", "heads": heads, "rows": rows}


def _mean_of(row: list[float | None], groups: list[Group], story: Story) -> float:
    values = [v for v, group in zip(row, groups) if v is not None and group is not story.before]
    return sum(values) / len(values) if values else float("-inf")


def differences(story: Story) -> dict[str, Any] | None:
    """The config fields that differ between the trained runs: a row a group, a column a field; None without any."""
    fields = differing_fields(story.groups)
    if not fields:
        return None
    rows = []
    for group in story.groups:
        trained = [flatten(run.config) for run in group.runs if run.trained]
        cells = [
            ", ".join(dict.fromkeys(_value(name, config[name]) for config in trained if name in config))
            for name in fields
        ]
        if trained:
            rows.append({"name": group.name, "ink": story.ink(group), "cells": [cell or MISSING for cell in cells]})
    return {"fields": fields, "rows": rows}


def _value(name: str, value: Any) -> str:
    if name.endswith("learning_rate") and isinstance(value, float):
        return rate(value)
    return '""' if value == "" else str(value)
