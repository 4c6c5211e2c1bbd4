"""From the figures of a comparison's jobs to its tables.

A figure of a case at a learning rate is its mean over seeds, with the standard deviation over seeds. Differences from
the case that all are held against, such as plain fine-tuning, are paired by seed, with Student's 95 % interval of their
mean.

A method is worth something where it lies above the frontier that this case draws by its learning rate alone (accuracy
learnt against knowledge kept). `above_frontier` is the knowledge that a run kept, less what that case of the same seed
keeps at the same accuracy, interpolated between its learning rates and the start.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from jaxsft.comparison.jobs import EVALUATION, Job

LEARNT, KEPT, CHOSEN_BY = "seen", "cloze", "validation"
PAIRED = "paired by seed, with 95 % intervals."


@dataclasses.dataclass(frozen=True)
class Done:
    """A job's figures.

    Attributes:
      tasks: name -> figures of the suite.
      seconds: of its training steps, the median step times their number; nan where there is no record of steps.
    """

    job: Job
    tasks: dict[str, dict[str, Any]]
    seconds: float

    def share(self, task: str) -> float:
        """Exact match or accuracy, in per cent."""
        figures = self.tasks[task]
        return 100 * figures.get("exact_match", figures.get("accuracy", math.nan))


COLUMNS: dict[str, tuple[str, Callable[[Done], float]]] = {  # title -> format, figure
    "seen": ("{:.1f}", lambda done: done.share("seen")),
    "unseen": ("{:.1f}", lambda done: done.share("unseen")),
    "cloze": ("{:.1f}", lambda done: done.share("cloze")),
    "cloze, choice": ("{:.1f}", lambda done: done.share("cloze_choice")),
    "chat": ("{:.1f}", lambda done: done.share("chat")),
    "chat, choice": ("{:.1f}", lambda done: done.share("chat_choice")),
    "skills": ("{:.1f}", lambda done: done.share("skills")),
    "biased": ("{:.1f}", lambda done: 100 * done.tasks["chat"].get("watched", math.nan)),
    "deviation": ("{:.2f}", lambda done: done.tasks["moved"]["deviation"]),
    "KL": ("{:.2f}", lambda done: done.tasks["moved"]["kl_per_token"]),
}


def read(job: Job, folder: Path) -> Done:
    """What a finished job left."""
    tasks = json.loads((folder / EVALUATION).read_text())["tasks"]
    if job.case is None:
        return Done(job, tasks, math.nan)
    metrics = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    steps = {line["step"]: line["time/step_seconds"] for line in lines if line["split"] == "train"}
    return Done(job, tasks, statistics.median(steps.values()) * max(steps) if steps else math.nan)


def chosen(done: Sequence[Done]) -> dict[str, float]:
    """Case -> the learning rate of the best mean validation accuracy, the lower one of equals."""
    best = {}
    for name in _names(done):
        of_case = [d for d in done if d.job.case and d.job.case.name == name]
        rates = sorted({d.job.learning_rate for d in of_case})
        mean = {r: statistics.fmean(d.share(CHOSEN_BY) for d in of_case if d.job.learning_rate == r) for r in rates}
        best[name] = max(rates, key=lambda rate: (mean[rate], -rate))
    return best


def above_frontier(done: Done, everything: Sequence[Done], against: str) -> float:
    """See the module's docstring; nan for an accuracy that the case `against` never reaches with that seed."""
    drawing = [d for d in everything if d.job.case is None or (d.job.case.name, d.job.seed) == (against, done.job.seed)]
    points = [(d.share(LEARNT), d.share(KEPT)) for d in drawing]
    best = [max(kept for learnt, kept in points if learnt >= x) for x, _ in points]  # more learnt serves as well
    order = np.argsort([x for x, _ in points])
    x, y = np.array([p[0] for p in points])[order], np.array(best)[order]
    return done.share(KEPT) - float(np.interp(done.share(LEARNT), x, y, right=math.nan))


def tables(done: Sequence[Done], against: str = "full") -> str:
    """The tables of one start, as Markdown.

    Args:
      done: its jobs.
      against: the case that the others are held against; "full" is plain fine-tuning.
    """
    best = chosen(done)
    at_best = [d for d in done if d.job.case is None or d.job.learning_rate == best[d.job.case.name]]
    start = next(d.job.start for d in done if d.job.case is None)
    seeds = len({d.job.seed for d in done if d.job.case})
    differences = _differences(at_best, against)
    parts = [
        f"## From {start}",
        f"Mean and standard deviation over seeds ({seeds}), at the learning rate of the best validation accuracy; per "
        "cent but for deviation and KL (nats). `biased`: held questions answered with the poor source's word.",
        _figures(at_best, done, best, against),
        f"Every learning rate. `above frontier`: knowledge kept (cloze) more than {against} keeps at the same accuracy "
        f"(seen); `beyond` are seeds more accurate than {against} at any rate.",
        _sweep(done, against),
        differences and f"Difference from {against} at the chosen learning rates, {PAIRED}\n\n{differences}",
        "Accuracy on seen wordings by family.",
        _families(at_best),
    ]
    return "\n\n".join(part for part in parts if part)


def _figures(at_best: Sequence[Done], done: Sequence[Done], best: dict[str, float], against: str) -> str:
    usual = statistics.fmean([d.seconds for d in done if d.job.case and d.job.case.name == against] or [math.nan])
    rows = []
    for name, group in _groups(at_best):
        cells = [_mean(form, [figure(d) for d in group]) for form, figure in COLUMNS.values()]
        time = statistics.fmean(d.seconds for d in group) / usual
        rows.append([name, f"{best[name]:g}" if name in best else "", *cells, _number("{:.2f}", time)])
    return _markdown(["", "rate", *COLUMNS, "time"], rows)


def _sweep(done: Sequence[Done], against: str) -> str:
    rows, swept = [], (CHOSEN_BY, LEARNT, "unseen", KEPT, "chat")
    for name in _names(done):
        of_case = [d for d in done if d.job.case and d.job.case.name == name]
        for rate in sorted({d.job.learning_rate for d in of_case}):
            group = [d for d in of_case if d.job.learning_rate == rate]
            shares = [_mean("{:.1f}", [d.share(task) for d in group]) for task in swept]
            rows.append([name, f"{rate:g}", *shares, "" if name == against else _above(group, done, against)])
    return _markdown(["", "rate", *swept, "above frontier"], rows)


def _above(group: Sequence[Done], done: Sequence[Done], against: str) -> str:
    """The mean over the seeds whose accuracy the case `against` reaches, and how many learnt more than that.

    Without that case there is no frontier, and "-".
    """
    if against not in _names(done):
        return "-"
    found = [above_frontier(d, done, against) for d in group]
    within = [value for value in found if math.isfinite(value)]
    beyond = len(found) - len(within)
    mean = [_mean("{:+.1f}", within)] if within else []
    return ", ".join(mean + [f"{beyond} of {len(found)} beyond"] * bool(beyond))


def _differences(at_best: Sequence[Done], against: str) -> str:
    other = {d.job.seed: d for d in at_best if d.job.case and d.job.case.name == against}
    rows = []
    for name, group in _groups(at_best):
        if group[0].job.case is None or name == against or len(other) < 2:
            continue
        pairs = [(figure, form) for form, figure in COLUMNS.values()]
        rows.append([name, *(_interval(form, [f(d) - f(other[d.job.seed]) for d in group]) for f, form in pairs)])
    return _markdown(["", *COLUMNS], rows) if rows else ""


def _families(at_best: Sequence[Done]) -> str:
    names = sorted(at_best[0].tasks[LEARNT]["by_task_type"])
    share = lambda d, family: 100 * d.tasks[LEARNT]["by_task_type"][family]["exact_match"]
    rows = [
        [name, *(_mean("{:.0f}", [share(d, family) for d in group]) for family in names)]
        for name, group in _groups(at_best)
    ]
    return _markdown(["", *names], rows)


def _names(done: Sequence[Done]) -> list[str]:
    return list(dict.fromkeys(d.job.case.name for d in done if d.job.case))


def _groups(at_best: Sequence[Done]) -> list[tuple[str, list[Done]]]:
    """The start, then each case, with all their seeds."""
    groups = [(d.job.start, [d]) for d in at_best if d.job.case is None]
    return groups + [(name, [d for d in at_best if d.job.case and d.job.case.name == name]) for name in _names(at_best)]


def _mean(form: str, values: Sequence[float]) -> str:
    text = _number(form, statistics.fmean(values))
    if len(values) < 2 or text == "-":
        return text
    return f"{text} ± {form.replace('+', '').format(statistics.stdev(values))}"


def _interval(form: str, values: Sequence[float]) -> str:
    """Mean and half-width of Student's 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{form.replace('{:', '{:+').format(statistics.fmean(values))} ± {form.format(half)}"


def _number(form: str, value: float) -> str:
    return form.format(value) if math.isfinite(value) else "-"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    line = lambda cells: "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"
    return "\n".join([line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])
