"""The report as plain text, for the end of a command."""

import dataclasses

from jaxsft.forgetting.differences import Report
from jaxsft.forgetting.page import NOTHING, distinct, spoken
from jaxsft.forgetting.words import Cell, Line, count, figure_lines, splits, subject_lines, task_lines, task_order

SURE = "*"
SUBJECTS = 8
WIDEST = 46  # characters of a question


def summary(report: Report, questions: int = 4) -> str:
    """Tables of tasks, distances and subjects, and a few lost questions of every model."""
    parts = [_table(report, task_lines(report), "")] if report.tasks else []
    if report.tasks:
        parts.append(
            f"{SURE} p < {1 - report.settings.confidence:.2g} by McNemar's exact test, with Holm's correction over the "
            "tasks of a model, or the subjects of a task."
        )
    if distances := figure_lines(report):
        rows = [["", "base", *(part for model in report.models for part in (model, "", ""))]]
        rows += [[f"{line.task}, {line.metric}", line.base, *(t for c in line.cells for t in c)] for line in distances]
        parts.append(aligned(rows))
    if lost := _most_lost(report):
        parts.append(_table(report, lost, "subjects most lost"))
    parts += [text for model in report.models if (text := _lost(report, model, questions))]
    return "\n\n".join([*parts, *report.remarks])


def _most_lost(report: Report) -> list[Line]:
    """Of all tasks and splits the subjects that some model lost most of."""
    lines = [
        (min(row.difference for row in rows), dataclasses.replace(line, name=f"{task}: {line.name}"))
        for task, split in splits(report)
        for line in subject_lines(report, task, split)
        if (rows := [r for r in report.subjects if (r.task, r.split, r.subject) == (task, split, line.name)
                     and r.sure and r.difference < 0])
    ]  # fmt: skip
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])[:SUBJECTS]]


def _table(report: Report, lines: list[Line], title: str) -> str:
    rows = [[title, "n", "base", *(part for model in report.models for part in (model, "", "", ""))]]
    for line in lines:
        name = line.name if title else f"{line.name}, {line.metric}"
        rows.append([name, line.questions, line.base, *(t for cell in line.cells for t in _cell(report, cell))])
    return aligned(rows)


def _cell(report: Report, cell: Cell | None) -> tuple[str, str, str, str]:
    if cell is None:
        return "\u2013", "", "", ""
    sure = SURE if cell.significant(1 - report.settings.confidence) else ""
    return cell.value, cell.difference, cell.interval, sure


def _lost(report: Report, model: str, most: int) -> str:
    """A few questions that a model lost, of each task in turn."""
    queues: dict[str, list[dict]] = {task: [] for task in task_order(report)}
    for question in report.questions:
        if question["models"].get(model, {}).get("change") == "lost":
            queues[question["task"]].append(question)
    queues = {task: queue for task, queue in queues.items() if queue}
    total = sum(len(distinct(queue)) for queue in queues.values())
    chosen = []
    while queues and len(chosen) < most:
        for task in list(queues):
            chosen.append(queues[task].pop(0))
        queues = {task: queue for task, queue in queues.items() if queue}
    rows = [
        [f"  {q['task']}:", _short(q["prompt"]), f"[{_short(q['reference'])}]", _short(q["models"][model]["answer"])]
        for q in chosen[:most]
    ]
    return f"{model} lost {count(total, 'question')}, such as\n{aligned(rows, left=4)}" if rows else ""


def _short(value: object) -> str:
    text = " ".join(spoken(value).split()) or NOTHING
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}\u2026"


def aligned(rows: list[list[str]], left: int = 1) -> str:
    """Columns of equal width; those after the first `left` ones end at the same place."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cell = lambda i, text: text.ljust(widths[i]) if i < left else text.rjust(widths[i])
    return "\n".join("  ".join(cell(i, text) for i, text in enumerate(row)).rstrip() for row in rows)
