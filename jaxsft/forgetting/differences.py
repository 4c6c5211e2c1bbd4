"""From two models' evaluations to what was lost, kept and won: the numbers of the report, and nothing but numbers."""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxsft import __version__
from jaxsft.errors import UserError
from jaxsft.evaluation.registry import KINDS
from jaxsft.forgetting.evaluations import Evaluation, Record
from jaxsft.forgetting.pairing import SPLITS, Questions, pair
from jaxsft.forgetting.statistics import Marks, changed, figures, holm, interval, mcnemar, normal_interval, ratio_error

DISTANCES = {"deviation": "log_ratio_sum", "log_ratio_per_token": "log_ratio_sum", "kl_per_token": "kl_sum"}
CLOSE = 1e-6  # of a figure to the mean of the marks that it is of


@dataclasses.dataclass(frozen=True)
class Settings:
    """How intervals are made; see `jaxsft.forgetting.statistics.interval`."""

    draws: int = 10_000
    confidence: float = 0.95
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Row:
    """A task, or one subject of it, of one model against the base.

    Attributes:
      model: the model's name.
      task: the task's.
      split: "" for the task as a whole, else `by_source` or `by_task_type`.
      subject: the part's name; "" for the whole.
      metric: what the figures are: of a whole task first that which stands for it, then other scores of its
        answers.
      base: the base's figure; None where nothing counts.
      tuned: the model's, likewise.
      difference: the model's less the base's.
      low: lower end of the difference's interval.
      high: upper end.
      p: McNemar's, exact.
      p_holm: corrected over the subjects of the same task, split and model; for a whole over all rows of the model.
      questions: how many were asked.
      distinct: how many of them in different words.
      known: how many distinct ones the base had right, be it in part.
      missed: how many distinct ones that count the base did not have wholly right, so that they could be won.
      lost: distinct ones that the model marks lower on.
      won: those that it marks higher on.
    """

    model: str
    task: str
    split: str
    subject: str
    metric: str
    base: float | None
    tuned: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float
    p_holm: float
    questions: int
    distinct: int
    known: int
    missed: int
    lost: int
    won: int

    @property
    def sure(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A single number of a task of one model, beside the base's; None where one of them has none.

    Attributes:
      low: lower end of the interval of the difference, or of the figure itself where the base has none; None where
        there is nothing that an interval could be made of.
      high: upper end.
    """

    model: str
    task: str
    name: str
    base: float | None
    tuned: float | None
    difference: float | None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass
class Report:
    """All that is told of some models and their base.

    Attributes:
      base: the base's name.
      models: those of the models, in the order given.
      kinds: task's name -> its kind, as `TaskConfig.task`.
      prompts: task's name -> how it was asked, see `Evaluation.prompts`.
      tasks: rows of whole tasks, task by task, and of each the models in their order, each with its metrics.
      subjects: rows of parts, likewise.
      figures: every other number of every task.
      questions: one for each question: see `_question`.
      progress: what was measured while a model was trained; see `jaxsft.forgetting.progress`.
      remarks: what could not be compared, and why.
      settings: how intervals were made.
      paths: name -> what `--base` and `--model` were.
    """

    base: str
    models: list[str]
    kinds: dict[str, str]
    prompts: dict[str, str]
    tasks: list[Row]
    subjects: list[Row]
    figures: list[Figure]
    questions: list[dict[str, Any]]
    progress: list[Any]
    remarks: list[str]
    settings: Settings
    paths: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Everything but the questions, as JSON values."""
        lists = ("tasks", "subjects", "figures", "progress")
        rows = {name: [dataclasses.asdict(item) for item in getattr(self, name)] for name in lists}
        head = {
            "base": self.base,
            "models": self.models,
            "paths": self.paths,
            "kinds": self.kinds,
            "prompts": self.prompts,
        }
        return head | rows | {
            "remarks": self.remarks, "settings": dataclasses.asdict(self.settings), "version": __version__,
        }  # fmt: skip


def compare(base: Evaluation, models: list[Evaluation], settings: Settings) -> Report:
    """Pairs the answers and takes all differences.

    Raises:
      UserError: for models that were asked different questions, or answers that do not belong to the figures.
    """
    names = [base.name, *(model.name for model in models)]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two models are called {double!r}; name each model once, and the base apart from them.")
    asked, remarks = pair(base, models)
    order = {model.name: model for model in models}
    tasks, subjects = [], []
    for questions in asked:
        for name in (name for name in order if name in questions.models):
            _check(questions, base, "")
            _check(questions, order[name], name)
            metric = _metric(base.tasks[questions.task]) or "correct"
            marks = questions.marks(name)
            head = {"model": name, "task": questions.task, "metric": metric}
            whole = {"split": "", "subject": ""}
            tasks.append(_row(head | whole, marks, settings))
            for score in questions.scores(metric):
                tasks.append(_row(head | whole | {"metric": score}, questions.marks(name, score), settings))
            for split in SPLITS:
                parts = questions.subjects(split)
                rows = [_row(head | {"split": split, "subject": part}, marks.at(at), settings)
                        for part, at in parts.items()]  # fmt: skip
                subjects += _corrected(rows)
    by_model = [_corrected([row for row in tasks if row.model == name]) for name in order]
    corrected = {(row.model, row.task, row.metric): row for rows in by_model for row in rows}
    return Report(
        base.name,
        list(order),
        {task: told.get("task", "") for evaluation in (*models, base) for task, told in evaluation.tasks.items()},
        {task: prompt for evaluation in (*models, base) for task, prompt in evaluation.prompts.items()},
        [corrected[row.model, row.task, row.metric] for row in tasks],
        subjects,
        _figures(base, models, settings),
        [line for questions in asked for line in _lines(questions)],
        [],
        remarks + _otherwise_asked(base, models),
        settings,
        {evaluation.name: evaluation.model for evaluation in (base, *models)},
    )


def _otherwise_asked(base: Evaluation, models: list[Evaluation]) -> list[str]:
    """Remarks on tasks that a model was asked in another template than the base."""
    return [
        f"{task!r} was asked under the template {base.prompts[task]!r} of {base.name}, {prompt!r} of {model.name}; "
        "unless both write the same, a difference is also one of prompts."
        for model in models
        for task, prompt in model.prompts.items()
        if base.prompts.get(task, prompt) != prompt
    ]


def _row(head: dict[str, str], marks: Marks, settings: Settings) -> Row:
    base, tuned = figures(marks)
    lost, won = changed(marks)
    p = mcnemar(lost, won)
    low, high = interval(marks, settings.draws, settings.confidence, settings.seed)
    values = {"base": base, "tuned": tuned, "difference": tuned - base, "low": low, "high": high}
    sums = marks.sums()
    most = max(1.0, marks.base.max(initial=0), marks.model.max(initial=0))  # chrF is per cent
    return Row(
        **head,
        **{name: finite(value) for name, value in values.items()},
        p=p,
        p_holm=p,
        questions=len(marks.base),
        distinct=len(sums),
        known=int((sums[:, 0] > 0).sum()),
        missed=int((sums[:, 0] < most * sums[:, 1]).sum()),
        lost=lost,
        won=won,
    )


def _corrected(rows: list[Row]) -> list[Row]:
    return [dataclasses.replace(row, p_holm=p) for row, p in zip(rows, holm([row.p for row in rows]))]


def _check(questions: Questions, evaluation: Evaluation, name: str) -> None:
    """The answers must be those that the figures are of."""
    if questions.left_out:
        return
    told = evaluation.tasks[questions.task]
    metric = _metric(told)
    records = questions.models[name] if name else questions.base
    counted = [record for record in records if record.get("counted", True)]
    value = finite(told.get(metric)) if metric else None
    if value is None or not counted:
        return
    mean = sum(record["correct"] for record in counted) / len(counted)
    if abs(mean - value) > CLOSE:
        raise UserError(
            f"{evaluation.file} says that {metric} of {questions.task!r} is {value:.6f}, but the answers beside it "
            f"give {mean:.6f}; they are not of one evaluation, so measure {evaluation.name} again."
        )


def _figures(base: Evaluation, models: list[Evaluation], settings: Settings) -> list[Figure]:
    """Every single number of the tasks, in the order in which they come."""
    found = []
    tasks = dict.fromkeys(task for evaluation in (base, *models) for task in evaluation.tasks)
    for task in tasks:
        sides = [evaluation.tasks.get(task, {}) for evaluation in (base, *models)]
        for name in dict.fromkeys(name for side in sides for name in side if finite(side[name]) is not None):
            start = finite(sides[0].get(name))
            for model, side in zip(models, sides[1:]):
                value = finite(side.get(name))
                difference = None if None in (start, value) else value - start
                kept = base.examples.get(task, {}), model.examples.get(task, {})
                ends = of_examples(name, *kept, value if difference is None else difference, settings.confidence)
                found.append(Figure(model.name, task, name, start, value, difference, *ends))
    return found


def of_examples(
    name: str, base: dict[str, np.ndarray], tuned: dict[str, np.ndarray], value: float | None, confidence: float
) -> tuple[float | None, float | None]:
    """The interval of a figure of likelihoods: of the difference of `nll_per_token` and of `perplexity` from the
    base's, and of a distance itself; (None, None) for other figures, and where what they are sums of was not kept.

    Args:
      name: the figure's.
      base: what the base's figures are sums of, see `jaxsft.evaluation.task.Result`.
      tuned: likewise, of the fine-tuned model.
      value: the difference, or the distance.
      confidence: of the interval.
    """
    weights = tuned.get("weight_sum")
    if value is None or weights is None:
        return None, None
    used = weights != 0
    weights, ratio = weights[used], lambda values: values.sum() / weights.sum()
    if name in DISTANCES and DISTANCES[name] in tuned:
        values = tuned[DISTANCES[name]][used]
        if name == "deviation":  # the mean over examples of their own means
            values, weights = values / weights, np.ones(len(values))
        parts = values - value * weights
    elif name in ("nll_per_token", "perplexity") and np.array_equal(base.get("weight_sum"), tuned["weight_sum"]):
        sides = [side["nll_sum"][used] for side in (base, tuned)]
        grown = [np.exp(ratio(side)) if name == "perplexity" else 1.0 for side in sides]  # the derivative
        before, after = (slope * (side - ratio(side) * weights) for slope, side in zip(grown, sides))
        parts = after - before
    else:
        return None, None
    low, high = normal_interval(value, ratio_error(parts, weights), confidence)
    return finite(low), finite(high)


def _lines(questions: Questions) -> list[dict[str, Any]]:
    """A line for each question: what was asked, the base's answer, every model's, and what became of it."""
    return [
        _question(record, {name: records[i] for name, records in questions.models.items()})
        for i, record in enumerate(questions.base)
    ]


def _question(base: Record, models: dict[str, Record]) -> dict[str, Any]:
    """What was asked, `base` (answer, correct) and `models`: name -> answer, correct and `change`: "lost", "won",
    "kept" (both right), "missing" (neither), or "uncounted"."""
    asked = {name: base.get(name, "") for name in ("task", "index", "id", "prompt", "reference", "source", "task_type")}
    told = {}
    for name, record in models.items():
        told[name] = {"answer": record["answer"], "correct": record["correct"], "change": _change(base, record)}
    return asked | {"base": {"answer": base["answer"], "correct": base["correct"]}, "models": told}


def _change(base: Record, model: Record) -> str:
    if not (base.get("counted", True) and model.get("counted", True)):
        return "uncounted"
    before, now = float(base["correct"]), float(model["correct"])
    if before == now:
        return "kept" if now > 0 else "missing"
    return "won" if now > before else "lost"


def _metric(told: dict[str, Any]) -> str:
    """The figure that stands for a task, "" for one of an unknown kind."""
    kind = KINDS.get(told.get("task", ""))
    return kind.figure if kind else ""


def finite(value: Any) -> float | None:
    """A finite number, or None."""
    good = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None
