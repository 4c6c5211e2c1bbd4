"""The report as one HTML file, readable without scripts, on a phone, in the dark and in print."""

import itertools
from typing import Any

from markupsafe import Markup

from jaxsft import __version__
from jaxsft.forgetting import plots
from jaxsft.forgetting.differences import Report, Row
from jaxsft.forgetting.words import count, figure_lines, main_rows, splits, subject_lines, task_lines, task_order
from jaxsft.report.figures import NARROW, difference, metric, write
from jaxsft.report.html import load, style

WIDE, NARROW_SCREEN = 760, 400
NOTHING = "(nothing)"
PARTS = {"by_source": "source", "by_task_type": "kind"}


def render(report: Report, shown: int = 5) -> str:
    """The page.

    Args:
      report: what is told.
      shown: lost and won questions of each subject that stand on it; all are in `questions.jsonl`.
    """
    sizes = (("wide", WIDE), ("narrow", NARROW_SCREEN))
    colours = plots.inks(report)
    return load("forgetting/page.html").render(
        report=report,
        style=style("forgetting/forgetting.css"),
        inks=colours,
        verdict=[{"name": name, "ink": colours[name], "clauses": verdict(report, name)} for name in report.models],
        overview=[(kind, Markup(svg)) for kind, size in sizes if (svg := plots.tasks(report, size))],
        tasks=task_lines(report),
        distances=figure_lines(report),
        others=figure_lines(report, all_of_them=True),
        subjects=[_subjects(report, *split, sizes) for split in splits(report)],
        progress=[Markup(svg) for svg in plots.progress(report)],
        slopes=_slopes(report),
        changes=[_changes(report, name, shown) for name in report.models],
        confidence=f"{100 * report.settings.confidence:g}{NARROW}%",
        draws=count(report.settings.draws, "draw"),
        version=__version__,
    )


def verdict(report: Report, model: str) -> list[dict[str, str]]:
    """What a model lost and won for sure, at most two clauses; and on how many tasks neither is sure."""
    rows = [row for row in main_rows(report) if row.model == model and row.difference is not None]
    clauses = []
    for word, found in (
        ("lost on", sorted((r for r in rows if r.sure and r.difference < 0), key=lambda r: r.difference)),
        ("won on", sorted((r for r in rows if r.sure and r.difference > 0), key=lambda r: -r.difference)),
    ):
        if found:
            most, kind = found[0], metric(found[0].metric)
            clauses.append(
                {
                    "text": f"{word} {len(found)} of {count(len(rows), 'task')}, most on {most.task}: "
                    f"{write(most.base, kind)} \u2192 ",
                    "after": write(most.tuned, kind, unit=True),
                }
            )
    if not clauses and rows:
        clauses.append({"text": f"no sure difference on any of {count(len(rows), 'task')}", "after": ""})
    return clauses


def _subjects(report: Report, task: str, split: str, sizes: Any) -> dict[str, Any]:
    lines = subject_lines(report, task, split)
    drawn = [(kind, Markup(plots.subjects(report, task, split, size))) for kind, size in sizes]
    left_out = max(len(lines) - plots.MOST, 0)
    return {"task": task, "part": PARTS[split], "lines": lines, "plots": drawn, "left_out": left_out}


def _slopes(report: Report) -> list[dict[str, Any]]:
    """A line for each task and model of what was measured while training."""
    colours, lines = plots.inks(report), []
    for item in report.progress:
        kind = metric(item.metric)
        slopes = [difference(value, kind) or "\u2013" for value in (item.slope, item.early, item.late)]
        values = [write(value, kind) for value in (item.points[0][1], item.points[-1][1])]
        unit = f"{kind.label}, %" if kind.share else kind.label
        head = {"task": item.task, "metric": unit, "name": item.model, "ink": colours[item.model], "stop": item.stop}
        lines.append(head | {"first": values[0], "last": values[1], "slopes": slopes, "best": item.best})
    return lines


def _changes(report: Report, model: str, shown: int) -> dict[str, Any]:
    """Of a model, task by task, the questions that were lost and won, by subject."""
    rows = {row.task: row for row in main_rows(report) if row.model == model}
    tasks = [_changed_task(report, rows[task], shown) for task in task_order(report) if task in rows]
    return {"name": model, "ink": plots.inks(report)[model], "tasks": [task for task in tasks if task["lists"]]}


def _changed_task(report: Report, row: Row, shown: int) -> dict[str, Any]:
    mine = [q for q in report.questions if q["task"] == row.task and row.model in q["models"]]
    lists = []
    for kind in ("lost", "won"):
        found = [question for question in mine if question["models"][row.model]["change"] == kind]
        name = lambda question: question["task_type"] or question["source"] or row.task
        for subject, group in itertools.groupby(sorted(found, key=name), key=name):
            group = distinct(list(group))
            rows = [
                {
                    "prompt": spoken(q["prompt"]),
                    "reference": spoken(q["reference"]),
                    "before": spoken(q["base"]["answer"]) or NOTHING,
                    "now": spoken(q["models"][row.model]["answer"]) or NOTHING,
                }
                for q in group[:shown]
            ]
            lists.append({"kind": kind, "subject": subject, "count": len(group), "rows": rows})
    return {"task": row.task, "lost": row.lost, "won": row.won, "known": row.known, "lists": lists}


def distinct(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each wording once."""
    return list({(str(q["prompt"]), str(q["reference"])): q for q in reversed(questions)}.values())[::-1]


def spoken(value: Any) -> str:
    """A prompt, a reference or an answer as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        messages = all(isinstance(item, dict) for item in value)
        return (
            "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in value)
            if messages
            else " / ".join(map(str, value))
        )
    return str(value)
