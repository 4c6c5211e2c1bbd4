"""The report's plots: differences with their intervals, one line a model; and scores on the way."""

import dataclasses
from collections.abc import Sequence
from html import escape

from jaxsft.forgetting.differences import Report, Row
from jaxsft.forgetting.progress import Progress
from jaxsft.forgetting.words import main_rows, task_order
from jaxsft.report import charts
from jaxsft.report.charts import SIZE, Axis, Frame, Line, marker, nice_ticks, shortened, svg, text_at, tick
from jaxsft.report.figures import difference, metric, write
from jaxsft.report.ink import BEFORE, Ink, ink
from jaxsft.report.labels import text_width

STEP, GAP, TOP, BOTTOM = 17, 13, 30, 40  # of a model's line, between groups, above and below the plot
MOST = 24  # subjects in a plot; of more, those that moved most
LONGEST = 26  # characters of a group's name


@dataclasses.dataclass(frozen=True)
class Group:
    """Lines that belong together: a task, or a subject of one, with the row of every model that has one."""

    name: str
    note: str
    rows: Sequence[Row]


def inks(report: Report) -> dict[str, Ink]:
    """Model's name -> its colour."""
    return {name: ink(i) for i, name in enumerate(report.models)}


def tasks(report: Report, width: int = 760) -> str:
    """The difference of every task that is a share, with its interval; "" without any."""
    rows = [row for row in main_rows(report) if row.difference is not None and metric(row.metric).share]
    names = [name for name in task_order(report) if any(row.task == name for row in rows)]
    groups = [_group(name, [row for row in rows if row.task == name]) for name in names]
    return forest(groups, inks(report), report.base, width, "Difference from the base, by task")


def subjects(report: Report, task: str, split: str, width: int = 760) -> str:
    """The same of a task's subjects, from the most lost to the most won; "" without any."""
    rows = [row for row in report.subjects if (row.task, row.split) == (task, split) and row.difference is not None]
    groups = [_group(name, [r for r in rows if r.subject == name]) for name in dict.fromkeys(r.subject for r in rows)]
    mean = lambda group: sum(row.difference for row in group.rows) / len(group.rows)
    groups.sort(key=mean)
    if len(groups) > MOST:
        moved = sorted(groups, key=lambda group: -abs(mean(group)))[:MOST]
        groups = [group for group in groups if group in moved]
    return forest(groups, inks(report), report.base, width, f"Difference from the base on {task}, by subject")


def forest(groups: Sequence[Group], colours: dict[str, Ink], base: str, width: int, title: str) -> str:
    """Marks with intervals left and right of zero.

    Args:
      groups: from top to bottom.
      colours: of the models.
      base: its name, which heads the notes.
      width: of the drawing.
      title: for readers who hear it.

    Returns:
      An `<svg>` element; "" without groups.
    """
    if not groups:
        return ""
    ends = [value for group in groups for row in group.rows for value in (row.low, row.high, row.difference, 0.0)
            if value is not None]  # fmt: skip
    air = 0.04 * (max(ends) - min(ends)) or 0.01
    names = max(text_width(shortened(group.name, LONGEST), SIZE) for group in groups)
    notes = max(text_width(text, SIZE - 1) for text in (shortened(base, 12), *(group.note for group in groups)))
    left, right = names + notes + 34, width - 62
    height = TOP + BOTTOM + sum(STEP * len(group.rows) + GAP for group in groups)
    frame = Frame((left, TOP, right, height - BOTTOM), (min(ends) - air, max(ends) + air), (0.0, 1.0))
    parts = [_ground(frame, base, left - 18)]
    y = TOP + GAP / 2
    for i, group in enumerate(groups):
        middle = y + STEP * len(group.rows) / 2
        if i:
            parts.append(f'<path class="grid" d="M0 {y - GAP / 2:.1f}H{width:.1f}"/>')
        full = group.name
        parts.append(text_at(shortened(full, LONGEST), 0, middle + SIZE * 0.34, "start", "title", full=full))
        parts.append(text_at(group.note, left - 18, middle + SIZE * 0.34, "end", "tick"))
        for row in group.rows:
            parts.append(_mark(frame, row, y + STEP / 2, colours[row.model]))
            y += STEP
        y += GAP
    return svg([part for part in parts if part], (width, round(height)), title)


def progress(report: Report) -> list[str]:
    """A plot a task of the scores while training, all with the same range of steps."""
    colours, names = inks(report), dict.fromkeys(item.task for item in report.progress)
    steps = [step for item in report.progress for step, _ in item.points]
    room = charts.label_room(list(dict.fromkeys(item.model for item in report.progress)))
    found = []
    for name in names:
        items: list[Progress] = [item for item in report.progress if item.task == name]
        kind = metric(items[0].metric)
        lines = [Line(item.points, item.model, colours[item.model]) for item in items]
        axis = Axis(f"{name}: {kind.label}", kind.share, kind.higher_is_better)
        found.append(charts.lines(lines, axis, x_range=(min(steps), max(steps)), room=room))
    return found


def legend(report: Report, width: int = 760) -> str:
    """The models' marks and names, for a plot that is a file of its own."""
    parts, x = [], 0.0
    for name, colour in inks(report).items():
        mark = marker(colour.marker, x + 6, 8, 4.6)
        parts.append(f'<g class="series" style="{colour.style}">{mark}</g>')
        parts.append(text_at(shortened(name, 30), x + 16, 12, "start", "label", colour))
        x += 36 + text_width(shortened(name, 30), SIZE)
    return svg(parts, (width, 18), "Models")


def above(top: str, below: str) -> str:
    """Two drawings of one width as one."""
    heads, insides = zip(*(drawing.partition(">")[::2] for drawing in (top, below)))
    (width, first), (_, second) = (
        tuple(map(int, head.split('viewBox="0 0 ')[1].split('"')[0].split())) for head in heads
    )
    moved = f'<g transform="translate(0 {first})">{insides[1].removesuffix("</svg>")}</g>'
    head = heads[1].replace(f'viewBox="0 0 {width} {second}"', f'viewBox="0 0 {width} {first + second}"')
    return f"{head}>{insides[0].removesuffix('</svg>')}{moved}</svg>"


def _group(name: str, rows: list[Row]) -> Group:
    return Group(name, write(rows[0].base, metric(rows[0].metric)), rows)


def _ground(frame: Frame, base: str, column: float) -> str:
    left, top, right, bottom = frame.box
    zero = frame.x(0.0)
    parts = ['<g class="axes">']
    ticks = nice_ticks(*frame.x_range, max(int((right - left) / 75), 3))
    for value in ticks:
        x = frame.x(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>')
        parts.append(text_at(_signed(tick(value, ticks, True), value), x, bottom + 4 + SIZE, "middle", "tick"))
    parts.append(f'<path class="base" d="M{zero:.1f} {top - 4:.1f}V{bottom:.1f}"/>')
    parts.append(text_at(f"{shortened(base, 12)}, %", column, top - 14, "end", "tick", full=base))
    parts.append(text_at("\u2190 lost", zero - 7, top - 14, "end", "note"))
    parts.append(text_at("won \u2192", zero + 7, top - 14, "start", "note"))
    parts.append(text_at("difference from the base, percentage points", right, bottom + 20 + SIZE, "end", "title"))
    return "".join([*parts, "</g>"])


def _mark(frame: Frame, row: Row, y: float, colour: Ink) -> str:
    x, kind = frame.x(row.difference), metric(row.metric)
    told = difference(row.difference, kind)
    bar = ""
    if row.low is not None and row.high is not None:
        bar = f'<path class="span" d="M{frame.x(row.low):.1f} {y:.1f}H{frame.x(row.high):.1f}"/>'
    label = f"{row.model}: {told} [{difference(row.low, kind)}, {difference(row.high, kind)}]"
    mark = f"<title>{escape(label)}</title>{bar}{marker(colour.marker, x, y, 4.6)}"
    return f'<g class="series" style="{colour.style}">{mark}</g>' + text_at(
        told, frame.box[2] + 58, y + SIZE * 0.34, "end", "label", colour if row.sure else BEFORE
    )


def _signed(text: str, value: float) -> str:
    return f"+{text}" if value > 0 else text
