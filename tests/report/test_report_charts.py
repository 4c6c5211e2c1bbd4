"""Ticks are round, values land where they belong, labels keep clear of each other, colours can be told apart."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from jaxsft.report import charts, groups, ink, labels
from jaxsft.report.charts import Axis, Line, Point
from jaxsft.report.figures import metric, rate, write

SVG = "{http://www.w3.org/2000/svg}"
X, Y = Axis("Learnt", True, True), Axis("Kept", True, True)


@pytest.mark.parametrize(
    "low, high, count", [(0, 1, 6), (-0.03, 1.03, 5), (17.3, 18.1, 4), (0, 748, 4), (1e-5, 3e-3, 5)]
)
def test_ticks_are_round_and_inside(low, high, count):
    ticks = charts.nice_ticks(low, high, count)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert low <= ticks[0] and ticks[-1] <= high and count / 3 <= len(ticks) <= count + 1
    assert max(steps) - min(steps) < 1e-9 * high
    mantissa = float(f"{steps[0]:.6e}".split("e")[0])
    assert mantissa in (1, 2, 2.5, 5)


def test_points_land_where_their_values_are():
    marks = [Point(0.2, 0.9, "a", ink.ink(0)), Point(0.6, 0.5, "b", ink.ink(0)), Point(0.4, 0.7, "c", ink.ink(0))]
    root = ElementTree.fromstring(charts.trade_off(marks, X, Y))
    spots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle") if c.get("class") == "mark"]
    (ax, ay), (bx, by), (cx, cy) = spots
    assert ax < bx and ay < by, "x to the right, y upwards"
    assert cx == pytest.approx((ax + bx) / 2, abs=0.11) and cy == pytest.approx((ay + by) / 2, abs=0.11)


def test_error_bars_span_one_standard_error_to_both_sides():
    marks = [Point(0.2, 0.5, "a", ink.ink(0), x_error=0.1), Point(0.4, 0.5, "b", ink.ink(0))]
    root = ElementTree.fromstring(charts.trade_off(marks, X, Y))
    spots = [float(c.get("cx")) for c in root.iter(f"{SVG}circle") if c.get("class") == "mark"]
    bar = next(p.get("d") for p in root.iter(f"{SVG}path") if p.get("class") == "error")
    start, end = (float(v) for v in re.findall(r"[MH]([\d.]+)", bar))
    assert end - start == pytest.approx(spots[1] - spots[0], abs=0.11), "0.2 wide, as the points are 0.2 apart"
    assert (start + end) / 2 == pytest.approx(spots[0], abs=0.11)


@pytest.mark.parametrize("count", [2, 5, 9])
def test_labels_of_close_points_do_not_cover_each_other(count):
    taken: list[labels.Box] = []
    for i in range(count):
        label = labels.beside(f"run-{i}", 200 + 9 * i, 200 + 7 * i, 12, taken, (0, 0, 700, 400))
        assert all(labels.overlap(label.box, box) == 0 for box in taken)
        assert labels.outside(label.box, (0, 0, 700, 400)) == 0
        taken.append(label.box)


def test_labels_stay_inside():
    for x, y in itertools.product((2, 350, 698), (12, 200, 396)):
        label = labels.beside("a long enough label", x, y, 12, [], (0, 0, 700, 400))
        assert labels.outside(label.box, (0, 0, 700, 400)) == pytest.approx(0, abs=1e-6), (x, y)


@pytest.mark.parametrize("heights", [[5, 5, 5], [10, 12, 50, 51, 90], [99, 98, 97], [50]])
def test_stacked_heights_keep_order_gap_and_bounds(heights):
    placed = labels.stacked(heights, 10, 0, 100)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    row = [placed[i] for i in order]
    assert all(b - a >= 10 - 1e-9 for a, b in itertools.pairwise(row))
    assert row[0] >= 0 and row[-1] <= 100
    if heights == [10, 12, 50, 51, 90]:
        assert placed == pytest.approx([6, 16, 45.5, 55.5, 90]), "pairs move apart evenly, what is free stays"


def test_standalone_is_a_file_of_its_own():
    text = charts.standalone(charts.lines([Line([(0, 1.0), (10, 2.0)], "a & b", ink.ink(1))], Axis("loss")))
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and root.find(f"{SVG}style").text.count("--paper") >= 2
    assert "a & b" in [t.text for t in root.iter(f"{SVG}text")]
    paper = root.find(f"{SVG}rect")
    assert [float(paper.get(k)) for k in ("x", "y", "width", "height")] == [
        float(v) for v in root.get("viewBox").split()
    ]
    assert text.count("http") == 1, "the namespace alone"


def test_colours_stand_out_and_differ():
    for family, shade in itertools.product(range(len(ink.HUES)), (-1, 0, 1)):
        colour = ink.ink(family, shade)
        assert ink.contrast(colour.light, "#ffffff") >= 3, "graphics, WCAG 2.2, 1.4.11"
        assert ink.contrast(colour.dark, "#16171a") >= 3
    assert ink.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert len({ink.ink(i) for i in range(30)}) == 30, "hue and marker together"


@pytest.mark.parametrize(
    "value, key, text",
    [
        (0.7234, "accuracy", "72.3"),
        (1.0, "accuracy", "100.0"),
        (2.5678, "loss", "2.568"),
        (1234.5, "perplexity", "1234"),
        (0.00012, "kl_per_token", "1.20e\u22124"),
        (float("nan"), "loss", "\u2013"),
        (None, "accuracy", "\u2013"),
    ],
)
def test_numbers(value, key, text):
    assert write(value, metric(key)) == text


def test_rounding_never_reaches_what_was_not_reached():
    assert write(0.998, metric("accuracy"), 0) == "99.8" and write(0.002, metric("accuracy"), 0) == "0.2"
    assert write(1.0, metric("accuracy"), 0) == "100" and write(0.0, metric("accuracy"), 0) == "0"


def test_rates_are_written_as_people_type_them():
    assert [rate(v) for v in (1e-3, 3e-4, 2.5e-5, 1.0)] == ["1e-3", "3e-4", "2.5e-5", "1e0"]


@pytest.mark.parametrize(
    "names, shared",
    [
        (["full-s0", "full-s1"], "full"),
        (["full-lr1e-3-seed0", "full-lr1e-3-seed12"], "full-lr1e-3"),
        (["lora_1", "lora_2"], "lora"),
        (["seed0/full", "seed1/full"], "full"),
        (["full-lr1e-3", "full-lr1e-3-s1"], "full-lr1e-3"),
        (["a", "b"], "a"),
    ],
)
def test_seeds_share_a_name(names, shared):
    assert groups._shared_name(names) == shared
