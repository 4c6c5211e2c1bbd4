"""Folders become runs: whatever a workdir or an evaluation left in them, checked once, here."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

from jaxsft.errors import UserError
from jaxsft.training.workdir import SUBMODELS

FILES = ("config.json", "metrics.jsonl", "summary.json", "evaluation.json", "evaluation.jsonl", "tasks.json")
LOSS_SPLITS = ("train", "eval")  # every other split of metrics.jsonl is a task measured while training

Series = list[tuple[int, float]]


@dataclasses.dataclass
class Answer:
    """What a model answered to one question, and whether that was right."""

    prompt: str
    reference: str
    answer: str
    correct: bool
    source: str = ""
    task_type: str = ""


@dataclasses.dataclass
class Run:
    """What one folder holds.

    Attributes:
      name: the end of its path that no other run has.
      path: as it was given.
      config: the resolved training config; {} where nothing was trained.
      fingerprints: of data and model, from the record of the run.
      job: of a comparison, that it is: `case`, `start`, `learning_rate` and `seed`; {} for any other run.
      versions: of the packages that it ran with.
      curves: split -> name -> (step, value), in the order of the steps; values are finite.
      summary: what was written at the end; {} for a run that has not reached it.
      tasks: task -> figures, of the evaluation, or the last ones measured while training.
      during_training: whether `tasks` are the latter.
      routing: figures of a task of the kind "routing", with their tables; {} where nothing is routed.
      answers: (task, index) -> answer; the same key is the same question in every run.
    """

    name: str
    path: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    job: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    curves: dict[str, dict[str, Series]] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    during_training: bool = False
    routing: dict[str, Any] = dataclasses.field(default_factory=dict)
    answers: dict[tuple[str, int], Answer] = dataclasses.field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether it is a training run; else it is the evaluation of a model as it was."""
        return bool(self.config)

    def last(self, split: str, name: str) -> float | None:
        """The last value of a curve."""
        series = self.curves.get(split, {}).get(name)
        return series[-1][1] if series else None


def read_runs(paths: list[str]) -> list[Run]:
    """Reads the folders, in their order; of a run of sub-models these, unless it was measured as a whole.

    Raises:
      UserError: for a folder that is not there, holds nothing of a run, or holds a file that cannot be read.
    """
    clean = [os.path.normpath(path) for path in paths]
    for path in clean:
        if clean.count(path) > 1:
            raise UserError(f"--runs names {path} twice; name each folder once.")
    return [run for path, name in zip(paths, unique_names(clean)) for run in _runs_of(path, name)]


def _runs_of(path: str, name: str) -> list[Run]:
    whole = read_run(path, name)
    places = [Path(path) / SUBMODELS / str(k) for k in range(whole.config.get("submodels", 0))]
    if whole.answers or (whole.tasks and not whole.during_training):  # a model that was made of them
        return [whole]
    begun = [place for place in places if (place / "config.json").exists()]
    return [read_run(str(place), f"{name}/{place.name}") for place in begun] or [whole]


def read_run(path: str, name: str) -> Run:
    """Reads one folder.

    Raises:
      UserError: see `read_runs`.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path} is no folder; --runs takes workdirs, or folders with an evaluation.json.")
    run = Run(name, path)
    record = _read_json(folder / "config.json")
    if "kind" in record:  # else it is the config.json of a model's folder
        run.config, run.fingerprints = record.get("config", {}), record.get("fingerprints", {})
        run.versions = record.get("versions", {})
    run.job = _read_json(folder / "job.json")
    run.curves = _curves(folder / "metrics.jsonl")
    run.summary = _read_json(folder / "summary.json")
    run.tasks, last = _tasks(folder / "evaluation.json"), _tasks(folder / "tasks.json")
    run.routing = next((f for tasks in (run.tasks, last) for f in tasks.values() if "kinds" in f), {})
    if not run.tasks:
        run.tasks, run.during_training = _last_figures(run.curves) | last, True
    run.answers = _answers(folder / "evaluation.jsonl")
    if not (run.config or run.curves or run.summary or run.tasks or run.answers):
        raise UserError(f"{path} holds nothing of a run; at least one of {', '.join(FILES)} must be there.")
    run.during_training &= bool(run.tasks)
    return run


def unique_names(paths: list[str]) -> list[str]:
    """For each path the shortest end of it, in whole parts, that no other has."""
    names = []
    for path in paths:
        parts = Path(path).absolute().parts
        ends = ["/".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        others = [Path(p).absolute().parts for p in paths if p != path]
        alone = (e for n, e in enumerate(ends, 1) if not any(o[-n:] == parts[-n:] for o in others))
        names.append(next(alone, path))
    return names


def number(value: Any) -> float | None:
    """A finite number, or None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; write it again, or move it away.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not an object; write it again, or move it away.")
    return value


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; a last line without its end is a live run's, and left out."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; write it again, or move it away.") from error
    objects = []
    for i, line in enumerate(lines[:-1], 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {i}, is not JSON: {error}; write it again, or move it away.") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {i}, is not an object; write the file again, or move it away.")
        objects.append(value)
    return objects


def _curves(path: Path) -> dict[str, dict[str, Series]]:
    curves: dict[str, dict[str, Series]] = {}
    for i, entry in enumerate(_read_lines(path), 1):
        if not isinstance(entry.get("step"), int) or not isinstance(entry.get("split"), str):
            raise UserError(f"{path}, line {i}, has no step and split; it is not a run's metrics.")
        names = curves.setdefault(entry["split"], {})
        for name, value in entry.items():
            if name not in ("step", "split") and (finite := number(value)) is not None:
                names.setdefault(name, []).append((entry["step"], finite))
    for names in curves.values():
        for series in names.values():
            series.sort()
    return curves


def _tasks(path: Path) -> dict[str, dict[str, Any]]:
    """The tasks of a suite's result, or of a single task's."""
    record = _read_json(path)
    if not record:
        return {}
    tasks = record.get("tasks", {record["task"]: record} if isinstance(record.get("task"), str) else None)
    if not isinstance(tasks, dict) or not all(isinstance(figures, dict) for figures in tasks.values()):
        raise UserError(f"{path} has no `tasks` with figures; write it with scripts/evaluate.py.")
    return tasks


def _last_figures(curves: dict[str, dict[str, Series]]) -> dict[str, dict[str, Any]]:
    return {
        split: {name: series[-1][1] for name, series in names.items() if not name.startswith("time/")}
        for split, names in curves.items()
        if split not in LOSS_SPLITS and names
    }


def _answers(path: Path) -> dict[tuple[str, int], Answer]:
    answers = {}
    for i, entry in enumerate(_read_lines(path), 1):
        missing = [name for name in ("task", "index", "correct") if name not in entry]
        if missing:
            raise UserError(f"{path}, line {i}, has no {missing[0]!r}; write it with scripts/evaluate.py.")
        texts = {n: _text(entry.get(n)) for n in ("prompt", "reference", "answer", "source", "task_type")}
        answers[str(entry["task"]), int(entry["index"])] = Answer(correct=bool(entry["correct"]), **texts)
    return answers


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
