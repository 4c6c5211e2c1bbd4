"""Where labels go: beside their points, clear of each other and of what is drawn."""

import dataclasses
from collections.abc import Sequence

WIDTH = 0.56  # of a character, over the font size: a mean of common sans-serif faces

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclasses.dataclass(frozen=True)
class Label:
    """A placed text: its anchor point in SVG's terms, and the box it fills."""

    text: str
    x: float
    y: float
    anchor: str
    box: Box


def text_width(text: str, size: float) -> float:
    """An estimate, in the units of `size`."""
    return WIDTH * size * len(text)


def beside(text: str, x: float, y: float, size: float, taken: Sequence[Box], bounds: Box, gap: float = 9.0) -> Label:
    """The best of twelve places around a point.

    Args:
      text: the label.
      x: of the point.
      y: of the point.
      size: of the font.
      taken: boxes to keep clear of.
      bounds: where the label has to be.
      gap: between the point and the text.
    """
    width, near = text_width(text, size), gap * 0.75
    places = [
        (x + gap, y + size * 0.35, "start"),
        (x + near, y - near, "start"),
        (x + near, y + near + size * 0.7, "start"),
        (x, y - gap - 1, "middle"),
        (x, y + gap + size * 0.8, "middle"),
        (x - gap, y + size * 0.35, "end"),
        (x - near, y - near, "end"),
        (x - near, y + near + size * 0.7, "end"),
        (x + gap, y - 1.6 * size, "start"),
        (x + gap, y + 2.2 * size, "start"),
        (x - gap, y - 1.6 * size, "end"),
        (x - gap, y + 2.2 * size, "end"),
    ]
    labels = [Label(text, px, py, anchor, text_box(px, py, width, size, anchor)) for px, py, anchor in places]
    costs = [sum(overlap(label.box, box) for box in taken) + 5 * outside(label.box, bounds) for label in labels]
    costs = [cost + 2 * i for i, cost in enumerate(costs)]
    return labels[costs.index(min(costs))]


def text_box(x: float, y: float, width: float, size: float, anchor: str) -> Box:
    """The box of a text whose baseline is at `y`."""
    left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
    return left, y - 0.8 * size, left + width, y + 0.25 * size


def stacked(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights moved apart by at least `gap` and into [low, high], as little as that takes, in the same order.

    That is the isotonic regression of the heights less their places in the row. Where there is no room for all, the gap
    shrinks.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    gap = min(gap, (high - low) / max(len(heights) - 1, 1))
    pools: list[tuple[float, int]] = []  # sum, members
    for place, i in enumerate(order):
        total, count = heights[i] - gap * place, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            total, count = total + pools[-1][0], count + pools.pop()[1]
        pools.append((total, count))
    free = [total / count for total, count in pools for _ in range(count)]
    most = high - gap * (len(heights) - 1)
    result = [0.0] * len(heights)
    for place, i in enumerate(order):
        result[i] = min(max(free[place], low), most) + gap * place
    return result


def overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def outside(box: Box, bounds: Box) -> float:
    """The area of a box that lies beyond the bounds."""
    return (box[2] - box[0]) * (box[3] - box[1]) - overlap(box, bounds)


def along(x0: float, y0: float, x1: float, y1: float, width: float = 5.0) -> list[Box]:
    """Small boxes that cover a straight line."""
    steps = max(int(max(abs(x1 - x0), abs(y1 - y0)) / width), 1)
    points = [(x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps) for k in range(steps + 1)]
    return [(x - width / 2, y - width / 2, x + width / 2, y + width / 2) for x, y in points]
