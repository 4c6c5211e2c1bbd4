"""The page: one HTML file that needs nothing else, readable without scripts, on a phone, in the dark and in print."""

import itertools
import json
from typing import Any

from markupsafe import Markup

from jaxsft import __version__
from jaxsft.errors import UserError
from jaxsft.report import plots, repeat, routing
from jaxsft.report.groups import Group, choose_before, make_groups
from jaxsft.report.html import load, style
from jaxsft.report.questions import change, samples, spread
from jaxsft.report.read import Run, read_runs
from jaxsft.report.story import Story, choose_tasks, columns, differences, figures_table, parts_table, verdict

WIDE, NARROW = (760, 440), (360, 400)  # the trade-off on a screen, and on a phone


def build(
    paths: list[str], learnt: str = "seen", kept: str = "cloze", before: str = "", questions: int = 8, shown: int = 3
) -> str:
    """The page about some folders.

    Args:
      paths: workdirs, or folders with an evaluation.
      learnt: the task that stands for what was learnt; see `story.choose_tasks` for when no run has it.
      kept: the task that stands for what was known before.
      before: the folder of the baseline, one of `paths`; "" chooses, see `groups.choose_before`.
      questions: lost and won questions listed for each run.
      shown: questions of each task whose answers are shown side by side.

    Returns:
      HTML.

    Raises:
      UserError: for folders that hold no run, or a baseline that is none of them.
    """
    return render(tell(read_runs(paths), learnt, kept, before), questions, shown)


def tell(runs: list[Run], learnt: str = "seen", kept: str = "cloze", before: str = "") -> Story:
    """Groups the runs, and chooses baseline and tasks.

    Raises:
      UserError: if `before` is none of the runs.
    """
    start, origin = choose_before(runs, before)
    groups = make_groups(runs, start)
    if not groups:
        raise UserError(f"--runs has nothing but the baseline {runs[0].path}; name at least one more folder.")
    learnt, kept, remarks = choose_tasks([*runs, *([start] if start else [])], learnt, kept)
    return Story(runs, groups, Group(start.name, [start]) if start else None, origin, learnt, kept, remarks)


def render(story: Story, questions: int = 8, shown: int = 3) -> str:
    """The story as HTML; see `build`."""
    template = load("report/page.html")
    cols = columns(story)
    several = [group for group in story.groups if len(group.runs) > 1]
    return template.render(
        story=story,
        style=style(),
        verdict=verdict(story),
        columns=cols,
        rows=figures_table(story, story.all_groups, cols),
        single_rows=figures_table(story, _singles(story), cols) if several else [],
        trade_off=[(kind, Markup(plots.trade_off(story, size))) for kind, size in (("wide", WIDE), ("narrow", NARROW))],
        curves=[Markup(svg) for svg in plots.curves(story)],
        depth=Markup(plots.depth(story)),
        changes=_changes(story, questions),
        samples=_samples(story, shown),
        parts=_parts(story),
        routing=_routing(story),
        differences=differences(story),
        making=_making(story),
        versions=_versions(story),
        default_file=repeat.DEFAULTS_LINE,
        file_name=repeat.CONFIG_NAME,
        version=__version__,
    )


def _singles(story: Story) -> list[Group]:
    return [Group(run.name, [run], group.family, group.shade) for group, run in _pairs(story)]


def _pairs(story: Story) -> list[tuple[Group, Run]]:
    return [(group, run) for group in story.groups for run in group.runs]


def _changes(story: Story, count: int) -> list[dict[str, Any]]:
    """For each run what it lost on the kept task and won on the learnt one; [] without answers to compare."""
    start = story.before.runs[0] if story.before else None
    if start is None or not start.answers:
        return []
    result = []
    for group, run in _pairs(story):
        lost, won = (change(start, run, task) for task in (story.kept, story.learnt))
        if not (lost.asked or won.asked):
            continue
        lists = []
        for kind, task, keys, out_of in (
            ("lost", story.kept, lost.lost, lost.known), ("won", story.learnt, won.won, won.asked - won.known)
        ):  # fmt: skip
            rows = [{"key": key, "before": start.answers[key], "now": run.answers[key]}
                    for key in spread(keys, start.answers, count)]  # fmt: skip
            share = len(keys) / out_of if out_of else 0.0
            lists.append({"kind": kind, "task": task, "count": len(keys), "of": out_of, "share": share, "rows": rows})
        result.append({"name": run.name, "ink": story.ink(group), "lists": lists})
    return result


def _samples(story: Story, count: int) -> list[dict[str, Any]]:
    """Questions with the answer of the first run of every group that was asked."""
    shown = [(group, group.runs[0]) for group in story.all_groups]
    result = []
    for task in [t for t in (story.learnt, story.kept) if t]:
        asked = [(group, run) for group, run in shown if any(key[0] == task for key in run.answers)]
        for key in samples([run for _, run in asked], task, count):
            answers = [{"name": g.name, "ink": story.ink(g), "answer": run.answers[key]} for g, run in asked]
            result.append({"task": task, "question": asked[0][1].answers[key], "answers": answers})
    return result


def _parts(story: Story) -> dict[str, list[dict[str, Any]]]:
    """Tables by family and source: of the trade-off's tasks, and of the others."""
    places: dict[str, list[dict[str, Any]]] = {"first": [], "others": []}
    for split in ("by_task_type", "by_source"):
        for task in story.tasks():
            if table := parts_table(story, task, split):
                places["first" if task in (story.learnt, story.kept) else "others"].append(table)
    return places


def _routing(story: Story) -> list[dict[str, Any]]:
    """The heat maps of the first run of every group that routes."""
    shown = [(group, run) for group in story.groups if (run := group.runs[0]).routing]
    return [
        {
            "name": run.name,
            "ink": story.ink(group),
            "panels": [Markup(svg) for svg in routing.panels(run)],
            "scale": routing.scale(run),
            "cv": run.routing["cv"],
            "own_type": run.routing.get("own_type"),
            "left_out": max(len(run.routing["kinds"]) - routing.MOST_KINDS, 0),
        }
        for group, run in shown
    ]


def _making(story: Story) -> list[dict[str, Any]]:
    """For each trained run its command, the config file that this starts from, and the whole config."""
    return [
        {
            "name": run.name,
            "ink": story.ink(group),
            "command": repeat.command(run),
            "file": repeat.config_file(run),
            "config": json.dumps(run.config, indent=2, ensure_ascii=False),
            "fingerprints": run.fingerprints,
        }
        for group, run in _pairs(story)
        if run.trained
    ]


def _versions(story: Story) -> list[dict[str, str]]:
    """Versions of packages, once for all runs that share them."""
    told = [(", ".join(f"{n} {v}" for n, v in run.versions.items()), run.name) for run in story.runs if run.versions]
    groups = [
        (text, [n for _, n in named]) for text, named in itertools.groupby(sorted(told), key=lambda pair: pair[0])
    ]
    return [{"versions": text, "runs": "" if len(groups) == 1 else ", ".join(names)} for text, names in groups]
