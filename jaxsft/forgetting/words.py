"""The report's numbers as texts, written once for the page and the terminal."""

import dataclasses
from collections.abc import Callable

from jaxsft.forgetting.differences import Figure, Report, Row
from jaxsft.report.figures import MISSING, Metric, difference, metric, write

KEY_FIGURES = {  # of tasks by their kind, what is shown besides the marks of their answers
    "deviation": ("deviation", "kl_per_token", "log_ratio_per_token"),
    "perplexity": ("nll_per_token", "perplexity", "mean_token_accuracy"),
    "separation": ("utility", "probe_in_data"),  # a separation says nothing without its utility
    "instruction_following": ("ifs_partial", "ifs_full"),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A model's figure in a row of the table.

    Attributes:
      value: the figure.
      difference: from the base, signed.
      interval: its ends.
      p: McNemar's.
      p_holm: corrected.
      trend: "better" or "worse" where the interval leaves zero out, else "".
      lost: how many of the questions that the base had right.
      won: how many of those that it had not wholly right.
      corrected: `p_holm` as a number.
    """

    value: str
    difference: str
    interval: str
    p: str
    p_holm: str
    trend: str
    lost: str
    won: str
    corrected: float

    def significant(self, level: float) -> bool:
        """Whether the corrected p is below a level."""
        return self.corrected < level


@dataclasses.dataclass(frozen=True)
class Line:
    """A task, or a subject, with a cell for each model; None where one was not asked.

    Attributes:
      prompt: how the task was asked, where that is not the tokenizer's own chat template.
    """

    name: str
    metric: str
    questions: str
    base: str
    cells: list[Cell | None]
    prompt: str = ""


@dataclasses.dataclass(frozen=True)
class FigureLine:
    """A number of a task: the base's, and of each model the value, the signed difference, and the interval of it, or of
    the value where the base has none."""

    task: str
    metric: str
    base: str
    cells: list[tuple[str, str, str]]


def task_lines(report: Report) -> list[Line]:
    """The tasks with questions, from the most lost to the most won."""
    order = task_order(report)
    return _lines(report, sorted(report.tasks, key=lambda row: order.index(row.task)), lambda row: row.task)


def main_rows(report: Report) -> list[Row]:
    """Of each task and model the row of the figure that stands for the task."""
    return list({(row.task, row.model): row for row in reversed(report.tasks)}.values())[::-1]


def task_order(report: Report) -> list[str]:
    """The tasks with questions, from the most lost to the most won of all models together."""
    rows = main_rows(report)
    names = dict.fromkeys(row.task for row in rows)
    return sorted(names, key=lambda name: _mean([row.difference for row in rows if row.task == name]))


def subject_lines(report: Report, task: str, split: str) -> list[Line]:
    """The subjects of a task, from the most lost to the most won of all models together."""
    rows = [row for row in report.subjects if (row.task, row.split) == (task, split)]
    mean = lambda name: _mean([row.difference for row in rows if row.subject == name])
    order = sorted(dict.fromkeys(row.subject for row in rows), key=mean)
    return _lines(report, sorted(rows, key=lambda row: order.index(row.subject)), lambda row: row.subject)


def splits(report: Report) -> list[tuple[str, str]]:
    """(task, split) of every table of subjects, in the order of the tasks."""
    order = task_order(report)
    found = dict.fromkeys((row.task, row.split) for row in report.subjects)
    return sorted(found, key=lambda name: order.index(name[0]))


def cell(row: Row) -> Cell:
    """What is written of a row."""
    kind = metric(row.metric)
    good = kind.higher_is_better
    trend = "" if not row.difference or good is None else "better" if (row.difference > 0) == good else "worse"
    return Cell(
        write(row.tuned, kind),
        difference(row.difference, kind) or MISSING,
        f"[{difference(row.low, kind) or MISSING}, {difference(row.high, kind) or MISSING}]",
        p_value(row.p),
        p_value(row.p_holm),
        trend if row.sure else "",
        f"{row.lost} of {row.known}",
        f"{row.won} of {row.missed}",
        row.p_holm,
    )


def figure_lines(report: Report, all_of_them: bool = False) -> list[FigureLine]:
    """The figures that tell of a task what marks do not, or all others that are not in the table of tasks."""
    asked = {(row.task, row.metric) for row in report.tasks}
    lines: dict[tuple[str, str], dict[str, Figure]] = {}
    for figure in report.figures:
        named = figure.name in KEY_FIGURES.get(report.kinds.get(figure.task, ""), ())
        if named if not all_of_them else (figure.task, figure.name) not in asked and not named:
            lines.setdefault((figure.task, figure.name), {})[figure.model] = figure
    found = []
    for (task, name), own in lines.items():
        kind, start = metric(name), next(iter(own.values())).base
        unit = f"{kind.label}, %" if kind.share else kind.label
        cells = [own.get(model) for model in report.models]
        found.append(FigureLine(task, unit, write(start, kind), [_figure(cell, kind) for cell in cells]))
    return found


def _figure(figure: Figure | None, kind: Metric) -> tuple[str, str, str]:
    if figure is None:
        return "", "", ""
    told, ends = difference(figure.difference, kind, figure.tuned), ""
    if figure.low is not None and figure.high is not None:
        form = difference if told else write
        ends = f"[{form(figure.low, kind, like=figure.tuned)}, {form(figure.high, kind, like=figure.tuned)}]"
    return write(figure.tuned, kind), told, ends


def p_value(p: float) -> str:
    """Three decimals, never 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(number: int, one: str, many: str = "") -> str:
    """A number of things."""
    return f"{number:,} {one if number == 1 else many or one + 's'}".replace(",", "\u202f")


def _lines(report: Report, rows: list[Row], name: Callable[[Row], str]) -> list[Line]:
    tables: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        tables.setdefault((name(row), row.metric), {})[row.model] = row
    lines = []
    for (title, _), own in tables.items():
        first = next(iter(own.values()))
        kind = metric(first.metric)
        unit = f"{kind.label}, %" if kind.share else kind.label
        cells = [cell(own[model]) if model in own else None for model in report.models]
        asked = "" if first.subject else report.prompts.get(first.task, "auto")
        prompt = {"auto": "", "none": "as plain text"}.get(asked, asked)
        lines.append(Line(title, unit, str(first.questions), write(first.base, kind), cells, prompt))
    return lines


def _mean(values: list[float | None]) -> float:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else 0.0
