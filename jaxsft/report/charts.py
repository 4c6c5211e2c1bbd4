"""Plots as SVG text, for the page and for files of their own: the trade-off, and curves over steps.

Colours come from `chart.css`, which `standalone` puts into a file and the page has once for all its plots; light and
dark follow the reader's setting. Texts are labels beside what they name.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from html import escape
from importlib import resources

from jaxsft.report.ink import BEFORE, Ink
from jaxsft.report.labels import Box, along, beside, stacked, text_width

SIZE = 12.0  # of texts
MARGIN = 16  # around a plot that is a file of its own

XY = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Axis:
    """What is along an axis.

    Attributes:
      label: the quantity's name.
      share: whether values are shares of 1, written in per cent.
      higher_is_better: None where neither is.
    """

    label: str
    share: bool = False
    higher_is_better: bool | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """A run in the trade-off plot.

    Attributes:
      x: what was learnt.
      y: what was kept.
      label: the text beside it.
      ink: its colour.
      x_error: standard error of `x`, drawn as a bar to both sides.
      y_error: of `y`.
      singles: the seeds that it is the mean of, drawn as small dots.
    """

    x: float
    y: float
    label: str
    ink: Ink
    x_error: float | None = None
    y_error: float | None = None
    singles: Sequence[XY] = ()


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
      points: (x, y) in the order of x.
      label: the text at its end; "" for none.
      ink: its colour.
      thin: drawn faintly, behind the others.
    """

    points: Sequence[XY]
    label: str
    ink: Ink
    thin: bool = False


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where data land in the drawing: the plot's box, and the ranges of values it stands for."""

    box: Box
    x_range: XY
    y_range: XY

    def x(self, value: float) -> float:
        """Value to drawing."""
        low, high = self.x_range
        return self.box[0] + (value - low) / (high - low) * (self.box[2] - self.box[0])

    def y(self, value: float) -> float:
        """Value to drawing."""
        low, high = self.y_range
        return self.box[3] - (value - low) / (high - low) * (self.box[3] - self.box[1])


def trade_off(
    points: Sequence[Point],
    x_axis: Axis,
    y_axis: Axis,
    paths: Sequence[Line] = (),
    before: XY | None = None,
    size: tuple[int, int] = (760, 460),
    title: str = "What was learnt against what was kept",
) -> str:
    """What was learnt (x) against what was kept (y): a point a run, a line a learning-rate frontier.

    Args:
      points: the runs.
      x_axis: what is learnt.
      y_axis: what is kept.
      paths: lines that join points, labelled in their middle; thin ones are ways through the plot.
      before: the model that training started from; lines through it part the plot in gained and lost.
      size: of the drawing, in its own units; a page scales it.
      title: for readers who hear the plot.

    Returns:
      An `<svg>` element.
    """
    width, height = size
    spots = [(p.x, p.y) for p in points] + ([before] if before else [])
    spots += [spot for point in points for spot in point.singles] + [spot for path in paths for spot in path.points]
    bars = [(p.x + k * (p.x_error or 0), p.y + k * (p.y_error or 0)) for p in points for k in (-1, 1)]
    frame = Frame(
        (46, 34, width - 16, height - 44),
        padded([x for x, _ in spots + bars], x_axis.share),
        padded([y for _, y in spots + bars], y_axis.share),
    )
    parts = [_axes(frame, x_axis, y_axis, size), _better(frame, x_axis, y_axis)]
    taken: list[Box] = []
    if before:
        parts.append(_cross(frame, before))
    for path in paths:
        parts.append(_polyline(frame, path, "way" if path.thin else "path"))
        places = [(frame.x(x), frame.y(y)) for x, y in path.points]
        taken += [box for (a, b), (c, d) in itertools.pairwise(places) for box in along(a, b, c, d)]
    for point in points:
        parts.append(_point(frame, point))
        x, y = frame.x(point.x), frame.y(point.y)
        taken.append((x - 7, y - 7, x + 7, y + 7))
        taken += _bars(frame, point)
        taken += [(frame.x(a) - 3, frame.y(b) - 3, frame.x(a) + 3, frame.y(b) + 3) for a, b in point.singles]
    bounds = (frame.box[0] - 4, frame.box[1] - 10, width - 2.0, frame.box[3] - 2)
    if before:
        x, y = frame.x(before[0]), frame.y(before[1])
        taken.append((x - 7, y - 7, x + 7, y + 7))
        label = beside("before", x, y, SIZE, taken, bounds)
        taken.append(label.box)
        parts.append(text_at(label.text, label.x, label.y, label.anchor, "label", BEFORE))
    for point in points:
        label = beside(shortened(point.label, 24), frame.x(point.x), frame.y(point.y), SIZE, taken, bounds)
        taken.append(label.box)
        parts.append(text_at(label.text, label.x, label.y, label.anchor, "label", point.ink))
    for path in (p for p in paths if p.label):
        x, y = _middle([(frame.x(x), frame.y(y)) for x, y in path.points])
        label = beside(shortened(path.label, 24), x, y, SIZE + 1, taken, bounds, gap=11)
        taken.append(label.box)
        parts.append(text_at(label.text, label.x, label.y, label.anchor, "label family", path.ink))
    return svg(parts, size, title)


def lines(
    curves: Sequence[Line],
    y_axis: Axis,
    x_label: str = "step",
    x_range: XY | None = None,
    room: float | None = None,
    size: tuple[int, int] = (340, 230),
) -> str:
    """Curves over steps, named at their ends.

    Args:
      curves: thin ones are drawn first; each has at least one point.
      y_axis: the quantity, which is also the plot's title.
      x_label: of the horizontal axis.
      x_range: the steps to show, so that several plots share them; None takes the curves'.
      room: for the names at the curves' ends, see `label_room`, so that several plots share it; None takes what fits.
      size: of the drawing, in its own units.

    Returns:
      An `<svg>` element.
    """
    width, height = size
    named = [c for c in curves if c.label]
    room = label_room([c.label for c in named]) if room is None else room
    steps = [x for c in curves for x, _ in c.points]
    low, high = x_range or (min(steps), max(steps))
    frame = Frame(
        (40, 34, width - room, height - 32),
        (low, high if high > low else low + 1),
        padded([y for c in curves for _, y in c.points], y_axis.share),
    )
    parts = [_axes(frame, Axis(x_label), y_axis, size, small=True)]
    for curve in sorted(curves, key=lambda c: not c.thin):
        parts.append(_polyline(frame, curve, "thin" if curve.thin else "line"))
    ends = [frame.y(c.points[-1][1]) for c in named]
    for curve, end, place in zip(named, ends, stacked(ends, SIZE + 0.5, frame.box[1], frame.box[3])):
        x = frame.x(curve.points[-1][0])
        leader = f'<path class="leader" d="M{x + 3:.1f} {end:.1f}L{frame.box[2] + 8:.1f} {place:.1f}"/>'
        text = text_at(
            shortened(curve.label), frame.box[2] + 10, place + SIZE * 0.32, "start", "label end", curve.ink, curve.label
        )
        parts.append(leader + text)
    return svg(parts, size, y_axis.label)


def scatter(
    points: Sequence[XY],
    groups: Sequence[int],
    names: Sequence[str],
    inks: Sequence[Ink],
    size: tuple[int, int] = (760, 460),
    title: str = "Where the groups lie",
) -> str:
    """Points in the colours of their groups, each group's name at its middle.

    Args:
      points: (x, y), in units that say nothing.
      groups: index of each point's group.
      names: of the groups.
      inks: their colours.
      size: of the drawing, in its own units.
      title: for readers who hear the plot.

    Returns:
      An `<svg>` element.
    """
    xs, ys = zip(*points)
    frame = Frame((8, 8, size[0] - 8, size[1] - 8), padded(xs, False), padded(ys, False))
    parts, labels, taken = [], [], []
    for group, (name, ink) in enumerate(zip(names, inks)):
        own = [(frame.x(x), frame.y(y)) for (x, y), g in zip(points, groups) if g == group]
        if not own:
            continue
        dots = "".join(f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="2" opacity="0.55"/>' for x, y in own)
        parts.append(f'<g class="series" style="{ink.style}">{dots}</g>')
        middle = (sum(x for x, _ in own) / len(own), sum(y for _, y in own) / len(own))
        label = beside(name, *middle, SIZE + 1, taken, (0, 0, *size), gap=0)
        taken.append(label.box)
        labels.append(text_at(label.text, label.x, label.y, label.anchor, "label family", ink))
    return svg(parts + labels, size, title)


def label_room(labels: Sequence[str]) -> float:
    """The width that `lines` needs for these names."""
    return max((text_width(shortened(label), SIZE - 1) for label in labels), default=0) + 14


def standalone(svg: str) -> str:
    """The plot as a file of its own, on its own paper, that needs nothing else."""
    style = resources.files("jaxsft.report").joinpath("chart.css").read_text(encoding="utf-8")
    head, _, rest = svg.partition(">")
    width, height = (int(size) for size in head.split('viewBox="0 0 ')[1].split('"')[0].split())
    box = f'"{-MARGIN} {-MARGIN} {width + 2 * MARGIN} {height + 2 * MARGIN}"'
    size = f'width="{width + 2 * MARGIN}" height="{height + 2 * MARGIN}"'
    head = head.replace(f'viewBox="0 0 {width} {height}"', f"viewBox={box} {size}")
    return f'{head}><style>{style}</style><rect class="paper" x="{-MARGIN}" y="{-MARGIN}" {size}/>{rest}\n'


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values (1, 2, 2.5 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def padded(values: Sequence[float], share: bool) -> XY:
    """The range of the values with air around them; that of shares does not go far beyond 0 and 1."""
    low, high = min(values), max(values)
    air = 0.07 * (high - low) or (0.05 if share else abs(high) * 0.05 or 1.0)
    low, high = low - air, high + air
    return (max(low, -0.03), min(high, 1.04)) if share else (low, high)


def _axes(frame: Frame, x_axis: Axis, y_axis: Axis, size: tuple[int, int], small: bool = False) -> str:
    left, _, right, bottom = frame.box
    x_ticks = min(4 if small else 7, max(int((right - left) / 60), 2))
    xs, ys = nice_ticks(*frame.x_range, x_ticks), nice_ticks(*frame.y_range, 4 if small else 6)
    parts = ['<g class="axes">']
    for value in ys:
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        parts.append(text_at(tick(value, ys, y_axis.share), left - 7, y + SIZE * 0.34, "end", "tick"))
    parts.append(f'<path class="base" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>')
    for value in xs:
        x = frame.x(value)
        parts.append(f'<path class="base" d="M{x:.1f} {bottom:.1f}v4"/>')
        parts.append(text_at(tick(value, xs, x_axis.share), x, bottom + 4 + SIZE, "middle", "tick"))
    parts.append(_title(y_axis, 2, SIZE + 1, "start", size[0]))
    if small:
        parts.append(text_at(x_axis.label, left, bottom + 5 + 2 * SIZE, "start", "tick"))
    else:
        parts.append(_title(x_axis, right, size[1] - 7, "end", size[0]))
    return "".join([*parts, "</g>"])


def _title(axis: Axis, x: float, y: float, anchor: str, width: int) -> str:
    unit = ", %" if axis.share else ""
    most = int((width - 10) / text_width("m", SIZE * 1.1)) - len(unit)
    return text_at(shortened(axis.label, most) + unit, x, y, anchor, "title", full=axis.label)


def _better(frame: Frame, x_axis: Axis, y_axis: Axis) -> str:
    """A word in the corner where runs want to be."""
    if x_axis.higher_is_better is None or y_axis.higher_is_better is None:
        return ""
    left, top, right, bottom = frame.box
    arrow = {(True, True): "↗", (True, False): "↘", (False, True): "↖", (False, False): "↙"}
    arrow = arrow[x_axis.higher_is_better, y_axis.higher_is_better]
    x, anchor = (right - 4, "end") if x_axis.higher_is_better else (left + 4, "start")
    y = top - 6 if y_axis.higher_is_better else bottom - 8
    return text_at(f"better {arrow}", x, y, anchor, "note")


def _cross(frame: Frame, at: XY) -> str:
    left, top, right, bottom = frame.box
    x, y = frame.x(at[0]), frame.y(at[1])
    return (
        f'<path class="before" d="M{left:.1f} {y:.1f}H{right:.1f}M{x:.1f} {top:.1f}V{bottom:.1f}"/>'
        f'<g class="series" style="{BEFORE.style}"><circle class="hollow" cx="{x:.1f}" cy="{y:.1f}" r="5"/></g>'
    )


def _point(frame: Frame, point: Point) -> str:
    x, y = frame.x(point.x), frame.y(point.y)
    parts = [f'<g class="series" style="{point.ink.style}"><title>{escape(_described(point))}</title>']
    if point.x_error:
        parts.append(f'<path class="error" d="M{frame.x(point.x - point.x_error):.1f} {y:.1f}'
                     f'H{frame.x(point.x + point.x_error):.1f}"/>')  # fmt: skip
    if point.y_error:
        parts.append(f'<path class="error" d="M{x:.1f} {frame.y(point.y - point.y_error):.1f}'
                     f'V{frame.y(point.y + point.y_error):.1f}"/>')  # fmt: skip
    parts += [f'<circle class="single" cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" r="2.4"/>' for a, b in point.singles]
    return "".join([*parts, marker(point.ink.marker, x, y, 5), "</g>"])


def _bars(frame: Frame, point: Point) -> list[Box]:
    x, y = frame.x(point.x), frame.y(point.y)
    across, up = frame.x(point.x + (point.x_error or 0)) - x, y - frame.y(point.y + (point.y_error or 0))
    return [(x - across, y - 2, x + across, y + 2), (x - 2, y - up, x + 2, y + up)]


def _described(point: Point) -> str:
    return f"{point.label}: {point.x:.4g}, {point.y:.4g}"


def marker(kind: str, x: float, y: float, r: float) -> str:
    """A filled mark of about the same area whatever its kind."""
    s, d = r * 0.88, r * 1.25
    paths = {
        "square": f"M{x - s:.1f} {y - s:.1f}h{2 * s:.1f}v{2 * s:.1f}h{-2 * s:.1f}z",
        "diamond": f"M{x:.1f} {y - d:.1f}l{d:.1f} {d:.1f}l{-d:.1f} {d:.1f}l{-d:.1f} {-d:.1f}z",
        "up": f"M{x:.1f} {y - d:.1f}l{d:.1f} {1.8 * d:.1f}h{-2 * d:.1f}z",
        "down": f"M{x:.1f} {y + d:.1f}l{d:.1f} {-1.8 * d:.1f}h{-2 * d:.1f}z",
    }
    if kind == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'
    return f'<path class="mark" d="{paths[kind]}"/>'


def _polyline(frame: Frame, curve: Line, kind: str) -> str:
    places = [(frame.x(x), frame.y(y)) for x, y in curve.points]
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    parts = [f'<g class="series" style="{curve.ink.style}"><path class="{kind}" d="{d}"/>']
    if kind == "line" and len(places) <= 12:
        parts += [marker(curve.ink.marker, x, y, 2.4) for x, y in places]
    return "".join([*parts, "</g>"])


def _middle(places: Sequence[XY]) -> XY:
    """The middle of the longest stretch."""
    if len(places) == 1:
        return places[0]
    (a, b), (c, d) = max(itertools.pairwise(places), key=lambda pair: math.dist(*pair))
    return (a + c) / 2, (b + d) / 2


def text_at(text: str, x: float, y: float, anchor: str, kind: str, ink: Ink | None = None, full: str = "") -> str:
    """A text of a class of `chart.css`; a shortened one has the `full` one as its hint."""
    series = f' style="{ink.style}"' if ink else ""
    kind = f"series {kind}" if ink else kind
    hint = f"<title>{escape(full)}</title>" if full and full != text else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{series}>{hint}{escape(text)}</text>'


def svg(parts: Sequence[str], size: tuple[int, int], title: str) -> str:
    """A drawing of that size in its own units; the title is for readers who hear it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def tick(value: float, ticks: Sequence[float], share: bool) -> str:
    """A value as the text at its tick, with no more decimals than tell the ticks apart; a share in per cent."""
    scale = 100 if share else 1
    step = abs(ticks[1] - ticks[0]) * scale if len(ticks) > 1 else abs(value) or 1
    value *= scale
    if max(abs(t) for t in ticks) * scale < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e") if value else "0"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if step < 10 and round(step * 10**digits, 6) % 1:  # 2.5, 0.25
        digits += 1
    return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "\u2212")


def shortened(label: str, most: int = 15) -> str:
    """At most so many characters."""
    return label if len(label) <= most else label[: most - 1] + "…"
