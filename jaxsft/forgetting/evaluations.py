"""What scripts/evaluate.py wrote of a model, read back: its figures, and its answers question by question."""

import dataclasses
import io
import json
from typing import Any

import numpy as np
from etils import epath

from jaxsft.errors import UserError
from jaxsft.files import read_npz, write_bytes

SUMS = ".npz"  # what `write_examples` writes
NEEDED = ("task", "index", "prompt", "answer", "correct")

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One model's.

    Attributes:
      file: where its figures are.
      model: as `--model` named it.
      name: what reports call it.
      tasks: name -> figures.
      records: task -> the answers, in their order; tasks that ask nothing are not there.
      prompts: task -> how it was asked: the template and, if there is one, the condition, as `DataConfig` has them.
      examples: task -> what its figures are sums of, see `jaxsft.evaluation.task.Result`; where it was kept.
    """

    file: str
    model: str
    name: str
    tasks: dict[str, dict[str, Any]]
    records: dict[str, list[Record]]
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    examples: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)


def read_evaluation(path: epath.PathLike, name: str = "") -> Evaluation:
    """Reads a file of figures, and the answers beside it if there are any: `a.jsonl` beside `a.json`.

    Args:
      path: the file of figures.
      name: what reports are to call the model; "" is what `--model` was.

    Raises:
      UserError: if there is no such file, or it is not what scripts/evaluate.py writes.
    """
    path = epath.Path(path)
    if path.suffix == ".jsonl":
        raise UserError(f"{path} holds the answers; name the figures beside it, {path.with_suffix('.json').name}.")
    try:
        figures = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); write it by scripts/evaluate.py."
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); write it again by scripts/evaluate.py.") from error
    if not isinstance(figures, dict) or not {"model", "version"} <= figures.keys():
        raise UserError(f"{path} is no evaluation: it has no model and version; write it by scripts/evaluate.py.")
    config = figures.get("config") or {}
    if "tasks" in figures:
        tasks = figures["tasks"]
    else:  # of one task, which the config names
        tasks = {config.get("name") or figures.get("task", ""): figures}
    if not isinstance(tasks, dict) or not all(isinstance(told, dict) for told in tasks.values()):
        raise UserError(f"{path} is no evaluation: its tasks are no objects by name; write it by scripts/evaluate.py.")
    answers = path.with_suffix(".jsonl")
    records: dict[str, list[Record]] = {}
    for i, line in enumerate(answers.read_text().split("\n") if answers.exists() else [], 1):
        if not line.strip():
            continue
        record = _record(line, f"{answers}, line {i}")
        records.setdefault(record["task"], []).append(record)
    if unknown := sorted(records.keys() - tasks.keys()):
        raise UserError(f"{answers} has answers to {unknown[0]!r}, of which {path} has no figures; write both again.")
    named = name or figures["model"]
    asked = config.get("tasks") or [config]
    prompts = {name: prompt for name, own in zip(tasks, asked) if (prompt := _prompt(own.get("data", {})))}
    examples = _read_examples(path.with_suffix(SUMS))
    return Evaluation(str(path), figures["model"], named, tasks, records, prompts, examples)


def _prompt(data: dict[str, Any]) -> str:
    condition = data.get("condition", "auto")
    return data.get("template", "") + ("" if condition == "auto" else f", condition {condition!r}")


def write_examples(path: epath.PathLike, examples: dict[str, dict[str, np.ndarray]]) -> None:
    """Keeps what likelihoods are sums of, beside a file of figures; intervals are made of it."""
    columns = {f"{task}/{name}": values for task, own in examples.items() for name, values in own.items()}
    if columns:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **columns)
        write_bytes(epath.Path(path).with_suffix(SUMS), buffer.getvalue())


def _read_examples(path: epath.Path) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    if path.exists():
        try:
            columns = read_npz(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); remove it, or measure the model again.") from error
        for column, values in columns.items():
            task, _, name = column.rpartition("/")
            found.setdefault(task, {})[name] = values
    return found


def _record(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: malformed JSON ({error.msg}); write the file again by scripts/evaluate.py."
        ) from error
    if missing := [name for name in NEEDED if not isinstance(record, dict) or name not in record]:
        raise UserError(f"{where}: no field {missing[0]!r}; write the file again by scripts/evaluate.py.")
    return record
