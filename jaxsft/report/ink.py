"""Colours: one hue a family of runs, its shades by learning rate, on light paper and on dark."""

import dataclasses

# Okabe and Ito's hues (jfly.uni-koeln.de/color), darkened on white and lightened on black to at least 3:1 contrast.
HUES = (
    ("#0b6bb0", "#62b6ee"),  # blue
    ("#c2500c", "#f0935a"),  # vermilion
    ("#0a7f5f", "#45c39d"),  # green
    ("#a8447f", "#e08dbb"),  # purple
    ("#8a6500", "#dcb13c"),  # ochre
    ("#4c5b9e", "#a3aef0"),  # indigo
)
MARKERS = ("circle", "square", "diamond", "up", "down")
SPREAD = {"light": (0.26, 0.42), "dark": (0.3, 0.45)}  # how far the lowest rate goes to white, the highest to black


@dataclasses.dataclass(frozen=True)
class Ink:
    """A colour on light paper and the same on dark, and the marker that says it once more."""

    light: str
    dark: str
    marker: str = "circle"

    @property
    def style(self) -> str:
        """For the style attribute of an element of class `series`, which then has `--c`."""
        return f"--light:{self.light};--dark:{self.dark}"


BEFORE = Ink("#1d1d1f", "#ececec")


def ink(family: int, shade: float = 0.0) -> Ink:
    """The colour of a family's member; `shade` goes from -1 (faint) to 1 (strong)."""
    light, dark = HUES[family % len(HUES)]
    marker = MARKERS[family % len(MARKERS)]
    if shade < 0:
        return Ink(_mix(light, 255, -shade * SPREAD["light"][0]), _mix(dark, 0, -shade * SPREAD["dark"][0]), marker)
    return Ink(_mix(light, 0, shade * SPREAD["light"][1]), _mix(dark, 255, shade * SPREAD["dark"][1]), marker)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours (WCAG 2.2)."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _mix(colour: str, target: int, amount: float) -> str:
    return "#" + "".join(f"{round(c + (target - c) * amount):02x}" for c in _channels(colour))


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
