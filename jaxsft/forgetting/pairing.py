"""Two models' answers to the same question, side by side.

Questions are paired by `id`, which is made from their content; files written before records had one by their place. In
either case prompt and reference must be the same.
"""

import dataclasses
import json
from typing import Any

import numpy as np

from jaxsft.errors import UserError
from jaxsft.forgetting.evaluations import Evaluation, Record
from jaxsft.forgetting.statistics import Marks

SPLITS = ("by_source", "by_task_type")
ASKED = ("prompt", "reference", "source", "task_type")  # what makes questions the same
SUBJECT = {"by_source": "source", "by_task_type": "task_type"}  # the field of a record that names its part


@dataclasses.dataclass(frozen=True)
class Questions:
    """A task's questions, each with the base's answer and those of the models that were asked it.

    Attributes:
      task: its name.
      base: the base's records.
      models: model's name -> its records, in the same order.
      left_out: questions that do not count: of a task on knowledge against context, those that the base does not answer
        from memory (`recalled` in its records).
    """

    task: str
    base: list[Record]
    models: dict[str, list[Record]]
    left_out: int = 0

    def marks(self, model: str, score: str = "") -> Marks:
        """Of the base and one model: whether answers are right, or one of the `scores` of the records."""
        base, own = self.base, self.models[model]
        words = [json.dumps([r[name] for name in ASKED if name in r]) for r in base]
        same = np.unique(words, return_inverse=True)[1] if words else np.zeros(0, np.int64)
        mark = lambda r: float(r["scores"][score] if score else r["correct"])
        counts = lambda r: float(r.get("counted", True))
        of = lambda function, records: np.array([function(record) for record in records], np.float64)
        return Marks(of(mark, base), of(mark, own), same, of(counts, base), of(counts, own))

    def scores(self, metric: str) -> list[str]:
        """The scores that answers have besides being right, which `metric` is the share of, and that say something
        else: such as that of a looser filter."""
        records = [*self.base, *(record for own in self.models.values() for record in own)]
        held = [record.get("scores", {}) for record in records]
        names = [name for name in held[0] if name != metric and all(name in scores for scores in held)]
        right = [float(record["correct"]) for record in records]
        return [name for name in names if [float(scores[name]) for scores in held] != right]

    def subjects(self, split: str) -> dict[str, np.ndarray]:
        """Name of a part -> places of its questions; {} where there are not several parts."""
        names = np.array([str(record.get(SUBJECT[split], "")) for record in self.base])
        found = sorted(set(names.tolist()))
        return {name: np.flatnonzero(names == name) for name in found} if len(found) > 1 else {}


def pair(base: Evaluation, models: list[Evaluation]) -> tuple[list[Questions], list[str]]:
    """The questions of every task of the base that has answers, and remarks on what cannot be compared.

    Raises:
      UserError: where two models were asked different questions under the name of one task, or no task is common.
    """
    found, remarks = [], []
    for task, records in base.records.items():
        asked = {model.name: model.records[task] for model in models if task in model.records}
        if not asked:
            remarks.append(f"No model but the base was asked {task!r}.")
            continue
        remarks += [f"{model.name} was not asked {task!r}." for model in models if model.name not in asked]
        sides = {model.name: _aligned(task, base, model) for model in models if model.name in asked}
        kept = [i for i, record in enumerate(records) if record.get("recalled", True)]
        if not kept:
            raise UserError(
                f"task {task!r}: of {len(records)} questions {base.name} answers none from memory, so there is no "
                "knowledge that a context could contradict; leave the task out, or ask what the base knows."
            )
        pick = lambda rows, kept=kept: [rows[i] for i in kept]
        found.append(Questions(task, pick(records), {n: pick(r) for n, r in sides.items()}, len(records) - len(kept)))
        if found[-1].left_out:
            counted = f"{len(kept)} of {len(records)} questions count"
            remarks.append(f"Of {task!r} {counted}: those that {base.name} answers from memory.")
    extra = {task: model.name for model in models for task in model.records if task not in base.records}
    remarks += [f"The base was not asked {task!r}, but {name} was." for task, name in extra.items()]
    if not found and not {t for t in base.tasks if any(t in model.tasks for model in models)}:
        raise UserError(
            f"{base.file} and {models[0].file} have no task in common; measure base and models with the same config."
        )
    return found, remarks


def _aligned(task: str, base: Evaluation, model: Evaluation) -> list[Record]:
    """The model's records in the order of the base's.

    Raises:
      UserError: where the questions differ, naming the first that does.
    """
    left, right = base.records[task], model.records[task]
    by_id = all("id" in record for record in [*left, *right])
    key = "id" if by_id else "index"
    tables: list[dict[Any, Record]] = []
    for evaluation, records in ((base, left), (model, right)):
        table = {record[key]: record for record in records}
        if len(table) < len(records):
            raise UserError(f"task {task!r} in {evaluation.file}: two questions have the same {key}; write it again.")
        tables.append(table)
    what = f"task {task!r}: {base.file} and {model.file} hold different questions"
    advice = "measure both models with the same config and data."
    for mine, other, holder in ((*tables, base.file), (*tables[::-1], model.file)):
        if alone := [name for name in mine if name not in other]:
            prompt = _short(mine[alone[0]]["prompt"])
            raise UserError(f"{what} ({len(left)} and {len(right)}): only {holder} has {prompt}; {advice}")
    for name, record in tables[0].items():
        other = tables[1][name]
        for field in ("prompt", "reference"):
            one, two = record.get(field), other.get(field)
            if one != two:
                raise UserError(
                    f"{what}: at {key} {name!r} the {field} is {_short(one)} in the one and {_short(two)} in the "
                    f"other; {advice}"
                )
    return [tables[1][record[key]] for record in left]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
