"""From runs to the plots of the page."""

import statistics

from jaxsft.report import charts
from jaxsft.report.charts import Axis, Line, Point
from jaxsft.report.figures import SECOND, SUPPORT, Metric, headline, metric
from jaxsft.report.groups import Group, family_name, frontier, label
from jaxsft.report.ink import ink
from jaxsft.report.read import LOSS_SPLITS, Series
from jaxsft.report.story import Story
from jaxsft.training.workdir import LAYER_GRADIENT

MOST_WAYS = 4  # groups whose way while training the trade-off shows; more would be a tangle
MOST_POINTS = 90  # of a training curve, which is averaged over bins of steps


def trade_off(story: Story, size: tuple[int, int]) -> str:
    """The plot of what was learnt against what was kept; "" where no run has both."""
    x_kind = story.metric(story.learnt) if story.learnt else None
    y_kind = story.metric(story.kept) if story.kept else None
    if x_kind is None or y_kind is None:
        return ""
    points, places = [], {}
    for group in story.groups:
        x, y = group.figure(story.learnt, x_kind.key), group.figure(story.kept, y_kind.key)
        if x is None or y is None:
            continue
        places[id(group)] = (x.value, y.value)
        singles = list(zip(x.singles, y.singles)) if len(x.singles) == len(y.singles) else []
        bars = (None, None) if singles else (x.error, y.error)
        points.append(Point(x.value, y.value, label(group, story.groups), story.ink(group), *bars, singles))
    if not points:
        return ""
    paths = []
    for family in dict.fromkeys(group.family for group in story.groups):
        members = [group for group in frontier(story.groups, family) if id(group) in places]
        if len(members) > 1:
            name = family_name(story.groups, family)
            paths.append(Line([places[id(g)] for g in members], name, ink(family)))
    if len(places) <= MOST_WAYS:
        paths += [way for group in story.groups if (way := _way(story, group, x_kind.key, y_kind.key))]
    before = None
    if story.before:
        start = story.before.figure(story.learnt, x_kind.key), story.before.figure(story.kept, y_kind.key)
        before = (start[0].value, start[1].value) if all(start) else None
    axes = (
        _axis(f"Learnt: {x_kind.label} on {story.learnt}", x_kind),
        _axis(f"Kept: {y_kind.label} on {story.kept}", y_kind),
    )
    return charts.trade_off(points, *axes, paths, before, size)


def _way(story: Story, group: Group, x_key: str, y_key: str) -> Line | None:
    """The way of a group through the plot while it was trained, where both tasks were measured at the same steps."""
    both = [group.curves(story.learnt, x_key), group.curves(story.kept, y_key)]
    if not all(both):
        return None
    x, y = (dict(mean_of(series)) for series in both)
    steps = sorted(x.keys() & y.keys())
    return Line([(x[s], y[s]) for s in steps], "", story.ink(group), thin=True) if len(steps) > 1 else None


def curves(story: Story) -> list[str]:
    """Small multiples over steps, all with the same range of steps: tasks measured while training, and losses."""
    tasks = [t for t in story.tasks() if t not in LOSS_SPLITS]
    tasks += [s for g in story.groups for run in g.runs for s in run.curves if s not in (*LOSS_SPLITS, *tasks)]
    panels: list[list[Line]] = []
    axes: list[Axis] = []

    def add(axis: Axis, panel: list[Line]) -> None:
        if panel:
            axes.append(axis)
            panels.append(panel)

    heads = {task: head for task in dict.fromkeys(tasks) if (head := _headline(story, task))}
    for task, head in heads.items():
        add(_axis(f"{task}: {head.label}", head), _panel(story, task, head.key))
    losses = _panel(story, "eval", "loss")
    thin = [Line(line.points, "" if losses else line.label, line.ink, thin=bool(losses)) for line in _training(story)]
    add(Axis("loss" + (" (held out; faint: training)" if losses else " (training)")), losses + thin)
    for task, head in heads.items():
        for kind in (metric(key) for key in SECOND if key != head.key):
            add(_axis(f"{task}: {kind.label}", kind), _panel(story, task, kind.key))
    for kind in map(metric, SUPPORT):
        add(_axis(kind.label, kind), _panel(story, "train", kind.key))
    steps = [x for panel in panels for line in panel for x, _ in line.points]
    room = charts.label_room([line.label for panel in panels for line in panel])
    return [charts.lines(p, axis, x_range=(min(steps), max(steps)), room=room) for p, axis in zip(panels, axes)]


def depth(story: Story) -> str:
    """The norm of each layer's gradient over the depth of the model, mean over the second half of the steps; "" where
    no run has measured it."""
    panel, size = [], (420, 260)
    for group in story.groups:
        profiles = [profile for run in group.runs if (profile := _profile(run.curves.get("train", {})))]
        if profiles:
            panel.append(Line(mean_of(profiles), group.name, story.ink(group)))
            panel += [Line(profile, "", story.ink(group), thin=True) for profile in profiles if len(profiles) > 1]
    return charts.lines(panel, Axis("norm of the gradient"), "layer", size=size) if panel else ""


def _profile(curves: dict[str, Series]) -> Series:
    """(layer, mean norm of its gradient over the second half of the steps)."""
    names = sorted(name for name in curves if name.startswith(LAYER_GRADIENT))
    layers = {int(name.removeprefix(LAYER_GRADIENT)): curves[name] for name in names}
    return [(i, statistics.fmean(v for _, v in s[len(s) // 2 :])) for i, s in layers.items()]


def _headline(story: Story, task: str) -> Metric | None:
    last = ({n: s[-1][1] for n, s in run.curves.get(task, {}).items()} for g in story.groups for run in g.runs)
    return next((kind for figures in last if (kind := headline(figures))), None)


def _panel(story: Story, split: str, name: str) -> list[Line]:
    panel = []
    for group in story.groups:
        series = group.curves(split, name)
        if series:
            panel.append(Line(thinned(mean_of(series)), group.name, story.ink(group)))
            if len(series) > 1:
                panel += [Line(thinned(s), "", story.ink(group), thin=True) for s in series]
    return panel


def _training(story: Story) -> list[Line]:
    return [
        Line(thinned(mean_of(series)), group.name, story.ink(group))
        for group in story.groups
        if (series := group.curves("train", "loss"))
    ]


def mean_of(series: list[Series]) -> Series:
    """The mean over seeds at the steps that all of them have; the first alone where they share none."""
    tables = [dict(one) for one in series]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return [(step, statistics.fmean(table[step] for table in tables)) for step in shared] or series[0]


def thinned(series: Series) -> Series:
    """Means over bins of consecutive points, so that at most `MOST_POINTS` are left."""
    size = -(-len(series) // MOST_POINTS)
    bins = [series[i : i + size] for i in range(0, len(series), size)]
    return [(statistics.fmean(x for x, _ in b), statistics.fmean(y for _, y in b)) for b in bins]


def _axis(name: str, kind: Metric) -> Axis:
    return Axis(name, kind.share, kind.higher_is_better)
