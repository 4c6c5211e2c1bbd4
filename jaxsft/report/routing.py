"""Heat maps of routed experts: for each kind of example the mean weight of every expert in every layer.

Weights are means over the routed linear maps of a layer. A cell is blue where an expert gets more than its even share
of 1 / N, orange where it gets less, strongest at the highest and the lowest weight of the run.
"""

import dataclasses
import math
import re
import statistics
from html import escape

from jaxsft.report.charts import shortened, svg, text_at
from jaxsft.report.read import Run

MOST_KINDS = 12  # kinds of example that are drawn, those with the most tokens
WIDTH, HEIGHT = 252, 22  # of a map's cells together, and of one
LEFT, TOP, GAP = 62, 40, 6  # room for the names of experts, for the titles, and between experts of unlike types

CLOSE = 0.1  # weights that differ by less than this are written with a decimal


@dataclasses.dataclass(frozen=True)
class Heat:
    """A kind of example.

    Attributes:
      name: its tag.
      kind: the type that it has, or -1.
      examples: how many.
      weights: [layers][experts].
    """

    name: str
    kind: int
    examples: int
    weights: list[list[float]]


def heats(run: Run) -> list[Heat]:
    """The kinds of a run's routing, those with types first, in rising order of name; [] without any."""
    kinds, layers = run.routing.get("kinds", {}), _layers(run.routing.get("maps", []))
    chosen = sorted(kinds, key=lambda name: -kinds[name]["tokens"])[:MOST_KINDS]
    found = []
    for name in sorted(chosen, key=lambda name: (-kinds[name]["type"], name)):
        weights, experts = kinds[name]["weights"], range(len(run.routing["experts"]))
        means = [[statistics.fmean(weights[m][n] for m in maps) for n in experts] for maps in layers.values()]
        found.append(Heat(name, kinds[name]["type"], kinds[name]["examples"], means))
    return found


def panels(run: Run) -> list[str]:
    """A map for each kind, as `<svg>` elements."""
    found, labels = heats(run), list(_layers(run.routing.get("maps", [])))
    experts = run.routing.get("experts", [])
    return [_panel(heat, labels, experts, scale(run)) for heat in found]


def scale(run: Run) -> tuple[float, float, float] | None:
    """The lowest weight of all maps, the even share, and the highest; None without maps."""
    weights = [w for heat in heats(run) for row in heat.weights for w in row]
    return (min(weights), 1 / len(run.routing["experts"]), max(weights)) if weights else None


def _layers(maps: list[str]) -> dict[str, list[int]]:
    """Layer, or the name of a map outside the layers -> places of its maps."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(maps):
        layer = re.match(r"layers\.(\d+)\.", name)
        found.setdefault(layer[1] if layer else name, []).append(place)
    return found


def _panel(heat: Heat, labels: list[str], experts: list[int], ends: tuple[float, float, float]) -> str:
    wide, several, (low, even, high) = WIDTH / len(labels), len(set(experts)) > 1, ends
    kind = f", type {heat.kind}" if heat.kind >= 0 else ""
    parts = [text_at(shortened(heat.name, 24) + kind, 2, 13, "start", "title", full=heat.name)]
    parts.append(text_at(f"{heat.examples} example{'s' if heat.examples != 1 else ''}", 2, 29, "start", "tick"))
    y = TOP
    for n, own in enumerate(experts):
        y += GAP if n and own != experts[n - 1] else 0
        name = f"{n + 1}" + (f" (type {own})" if several else "")
        parts.append(text_at(name, LEFT - 6, y + HEIGHT * 0.66, "end", "tick"))
        for column, row in enumerate(heat.weights):
            hint = f"layer {labels[column]}, expert {n + 1}: {100 * row[n]:.1f} %"
            reach = (high if row[n] > even else low) - even
            distance = math.copysign((row[n] - even) / reach, reach) if reach else 0.0
            number = f"{100 * row[n]:.{int(high - low < CLOSE)}f}" if wide >= 26 else ""
            parts.append(_cell(LEFT + column * wide, y, wide, number, distance, hint))
        y += HEIGHT
    for column in range(0, len(labels), -(-len(labels) // 8)):
        parts.append(text_at(labels[column], LEFT + (column + 0.5) * wide, y + 14, "middle", "tick"))
    parts.append(text_at("layer", LEFT - 6, y + 14, "end", "tick"))
    return svg(parts, (LEFT + WIDTH + 4, int(y) + 20), f"Weights of experts on {heat.name}")


def _cell(x: float, y: float, wide: float, number: str, distance: float, hint: str) -> str:
    """A weight, written in it as `number`; its `distance` from the even share is from -1 to 1."""
    kind = "more" if distance > 0 else "less"
    box = f'x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{wide - 1:.1f}" height="{HEIGHT - 1}" rx="2"'
    cell = f'<rect class="cell {kind}" style="--v:{abs(distance):.3f}" {box}><title>{escape(hint)}</title></rect>'
    return cell + (text_at(number, x + wide / 2, y + HEIGHT * 0.68, "middle", "share") if number else "")
