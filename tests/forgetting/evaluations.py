"""Evaluations made up by hand, in files, as scripts/evaluate.py writes them."""

import json
from pathlib import Path


def record(task: str, index: int, correct: bool, **fields: object) -> dict:
    """An answer to question `index`, whose words follow from task and index."""
    answer = f"right {index}" if correct else f"wrong {index}"
    said = {"task": task, "index": index, "id": f"{task}-{index}", "prompt": f"{task} question {index}?"}
    said |= {"reference": f"right {index}", "answer": answer, "correct": correct, "source": "all", "task_type": ""}
    return said | fields


def write(
    folder: Path,
    name: str,
    records: list[dict],
    more: dict[str, dict] | None = None,
    templates: dict[str, str] | None = None,
) -> str:
    """Writes figures and answers of a model; returns the path of the figures.

    Args:
      folder: where.
      name: the model's.
      records: of all tasks, which are generations.
      more: figures of tasks that ask nothing.
      templates: task -> the template that it was asked in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, dict] = {}
    for task in dict.fromkeys(r["task"] for r in records):
        marks = [r["correct"] for r in records if r["task"] == task]
        tasks[task] = {"task": "generation", "exact_match": sum(marks) / len(marks), "questions": len(marks)}
    config = [{"name": task, "data": {"template": (templates or {}).get(task, "auto")}} for task in tasks]
    figures = {"model": name, "tasks": tasks | (more or {}), "config": {"tasks": config}, "version": "0.1.0"}
    (folder / f"{name}.json").write_text(json.dumps(figures))
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(folder / f"{name}.json")
