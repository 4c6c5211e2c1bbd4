"""Workdirs made up by hand, with figures that tests know."""

import json
from pathlib import Path

from jaxsft.config import TrainConfig
from jaxsft.validation import to_dict

CORRECT = {  # run -> task -> which of the questions it has right
    "base": {"seen": [], "cloze": [0, 1, 2, 3, 4, 5]},
    "full": {"seen": [0, 1, 2, 4], "cloze": [0, 2, 3]},
    "lora": {"seen": [0, 1], "cloze": [0, 1, 2, 3, 5]},
}
QUESTIONS = 6


def config(**changes: object) -> dict:
    """A training config; `changes` are {"optimizer.learning_rate": 1e-3}."""
    tree = TrainConfig()
    tree.model.path = "base model"
    for path, value in changes.items():
        *parts, last = path.split(".")
        node = tree
        for part in parts:
            node = getattr(node, part)
        setattr(node, last, value)
    return to_dict(tree)


def train_record(folder: Path, **changes: object) -> Path:
    """A workdir with nothing but its config."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"kind": "TrainConfig", "config": config(**changes), "fingerprints": {"data": "d0"}}
    write(folder / "config.json", record | {"versions": {"jaxsft": "0.1.0", "jax": "0.10.2"}})
    return folder


def evaluation(folder: Path, tasks: dict[str, dict]) -> Path:
    """A folder's evaluation.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "evaluation.json", {"model": str(folder), "tasks": tasks, "config": {}, "version": "0.1.0"})
    return folder


def seen_and_cloze(seen: float, cloze: float, error: float = 0.02) -> dict[str, dict]:
    """Figures of the two tasks of the trade-off."""
    return {
        "seen": {"task": "generation", "exact_match": seen, "standard_error": error, "questions": 100},
        "cloze": {"task": "multiple_choice", "accuracy": cloze, "standard_error": error, "chance": 0.25},
    }


def metrics(folder: Path, entries: list[dict]) -> None:
    """A folder's metrics.jsonl."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def answers(folder: Path, correct: dict[str, list[int]], wrong: str = "wrong") -> None:
    """A folder's evaluation.jsonl: the questions in `correct` are right, all others answered with `wrong`."""
    lines = []
    for task, right in correct.items():
        for i in range(QUESTIONS):
            answer = f"{task}-reference-{i}" if i in right else f"{task}-{wrong}-{i}"
            lines.append(
                {"task": task, "index": i, "prompt": f"{task}-prompt-{i}", "reference": f"{task}-reference-{i}",
                 "answer": answer, "correct": i in right, "source": "made", "task_type": "ab"[i % 2]}
            )  # fmt: skip
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def three(folder: Path) -> list[str]:
    """A baseline and two trained runs with every file."""
    for name, correct in CORRECT.items():
        run = folder / name
        if name != "base":
            train_record(run, **({"adapter.kind": "lora"} if name == "lora" else {}))
            steps = [{"step": s, "split": "train", "loss": 3.0 - 0.1 * s, "time/step_seconds": 0.1} for s in (1, 2, 3)]
            during = [{"step": s, "split": "seen", "exact_match": 0.1 * s} for s in (0, 3)]
            metrics(run, steps + during + [{"step": 3, "split": "eval", "loss": 2.5}])
            write(run / "summary.json", {"steps": 3, "train_loss": 2.7})
        shares = {task: len(right) / QUESTIONS for task, right in correct.items()}
        tasks = seen_and_cloze(**shares)
        for task, key in (("seen", "exact_match"), ("cloze", "accuracy")):
            right = {t: [i for i in correct[task] if i % 2 == k] for k, t in enumerate("ab")}
            tasks[task]["by_task_type"] = {t: {key: len(v) / (QUESTIONS / 2)} for t, v in right.items()}
        evaluation(run, tasks)
        answers(run, correct)
    return [str(folder / name) for name in CORRECT]


def write(path: Path, value: dict) -> None:
    """JSON."""
    path.write_text(json.dumps(value))
