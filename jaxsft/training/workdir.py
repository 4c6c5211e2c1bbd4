"""The workdir: the record from which a run can be repeated, its lock, and its metrics.

config.json      the resolved config, versions, fingerprints of data and model
metrics.jsonl    one JSON object a line: step, split, names and numbers; names under `time/` are wall-clock figures
checkpoints/     Orbax
submodels/K/     of a run of sub-models what each leaves, less checkpoints, and `adapter/`
summary.json     written last: a run that has it is finished
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any, TextIO

from etils import epath

from jaxsft import files
from jaxsft.config import TrainConfig
from jaxsft.errors import UserError
from jaxsft.validation import flatten, from_dict, to_dict

PACKAGES = ("jaxsft", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")
# Fields that may change between the start of a run and its continuation: they do not change its numbers.
FREE = ("mesh", "checkpoint", "log.tensorboard", "log.wandb_project", "data.cache_dir")
GRADIENT = "grad_norm/"  # and a part of the model: what `config.log.layer_grad_norms` adds to the metrics
SUBMODELS, ADAPTER = "submodels", "adapter"  # folders of a run's sub-models, and of what each leaves at its end
LAYER_GRADIENT = f"{GRADIENT}layer_"  # and the layer's index


class Workdir:
    """A run's folder, locked while this process lives (on object stores, which have no locks, it is not).

    Raises:
      UserError: if it cannot be written, is locked by a live run, or holds a run of another config.
    """

    def __init__(self, path: epath.PathLike, writes: bool = True):
        self.path = epath.Path(path)
        self._writes = writes
        self._lock: TextIO | None = None
        if writes:
            self._open()

    def _open(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not _is_remote(self.path):
                self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 (held until the process ends)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"workdir {self.path} is in use by a live run; wait for it, or choose another --workdir."
            ) from error
        except OSError as error:
            raise UserError(
                f"workdir {self.path} cannot be written: {error.strerror}; choose another --workdir."
            ) from error

    @property
    def finished(self) -> bool:
        """Whether the run in it reached its end."""
        return (self.path / "summary.json").exists()

    def record(self, kind: str, config: dict[str, Any], fingerprints: dict[str, str]) -> None:
        """Writes config.json, or compares it with the one that is there.

        Args:
          kind: the config's class name, such as "TrainConfig".
          config: the resolved config.
          fingerprints: of what the config points at (data, model).

        Raises:
          UserError: naming the first field that differs.
        """
        versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
        new = {"kind": kind, "config": config, "fingerprints": fingerprints, "versions": versions}
        if not (self.path / "config.json").exists():
            self.write_json("config.json", new)
            return
        self.compare("config", config)
        old = self.compare("fingerprints", fingerprints)["versions"]
        if changed := [f"{name} {old.get(name)} -> {now}" for name, now in versions.items() if old.get(name) != now]:
            print(f"note: this run started with other versions: {', '.join(changed)}")

    def compare(self, section: str, now: dict[str, Any]) -> dict[str, Any]:
        """Holds a section of config.json, if there is one, against what it would be now; returns the whole record.

        Raises:
          UserError: naming the first field that differs.
        """
        file = self.path / "config.json"
        if not file.exists():
            return {}
        record = json.loads(file.read_text())
        if "kind" not in record:
            raise UserError(f"{file} is not a run's record (a model folder?); choose another --workdir.")
        before = record[section]
        if section == "config":  # a field that the older version did not have has its default
            before = to_dict(from_dict(TrainConfig, before, f"{file}: config"))
        old, new = flatten(before), flatten(now)
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name) and not (section == "config" and may_change(name)):
                raise UserError(
                    f"workdir {self.path} holds a run with {section}.{name} = {old.get(name)!r}, now it is "
                    f"{new.get(name)!r}; choose another --workdir, or repeat the command that started it."
                )
        return record

    def write_json(self, name: str, value: Any) -> None:
        """Writes a file of the workdir, whole or not at all; only the writing process does."""
        if self._writes:
            files.write_json(self.path / name, value)


class Metrics:
    """`metrics.jsonl`, cut back to a step at the start, appended to while training; TensorBoard and W&B beside it."""

    def __init__(self, workdir: Workdir, resume_step: int, tensorboard: bool, wandb_project: str, writes: bool):
        self._path = workdir.path / "metrics.jsonl"
        self.last: dict[str, dict[str, float]] = {}  # split -> its last numbers, less wall-clock figures
        self.nll: dict[str, list[tuple[int, float]]] = {}  # split -> (step, negative log-likelihood) of its lines
        self._writes, self._file, self._board, self._wandb = writes, None, None, None
        if not writes:
            return
        kept = [line for line in _whole_lines(self._path) if json.loads(line)["step"] <= resume_step]
        self._text = "".join(kept)
        for entry in map(json.loads, kept):
            self._remember(entry.pop("split"), entry)
        files.write_text(self._path, self._text)
        if not _is_remote(self._path):
            self._file = open(self._path, "a")  # noqa: SIM115 (closed in close)
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(os.fspath(workdir.path / "tensorboard"), purge_step=max(resume_step + 1, 0))
        if wandb_project:
            self._wandb = _start_wandb(wandb_project, workdir)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line: step, split, names and numbers."""
        self._remember(split, {"step": step, **values})
        if not self._writes:
            return
        line = json.dumps({"step": step, "split": split, **values}, allow_nan=False) + "\n"
        self._text += line if self._file is None else ""
        if self._file:
            self._guard(lambda: (self._file.write(line), self._file.flush()))
        named = {f"{split}/{name}": value for name, value in values.items()}
        if self._board:
            for name, value in named.items():
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(named, step=step)

    def _remember(self, split: str, values: dict[str, float]) -> None:
        self.last[split] = {name: value for name, value in values.items() if not name.startswith("time/")}
        if split in ("train", "eval"):
            self.nll.setdefault(split, []).append((int(values["step"]), values.get("nll", values["loss"])))

    def sync(self) -> None:
        """Everything written is on disk: called before a checkpoint, which must never be ahead of the metrics."""
        if self._file:
            self._guard(lambda: os.fsync(self._file.fileno()))
        elif self._writes:
            files.write_text(self._path, self._text)
        if self._board:
            self._board.flush()

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written: {error.strerror}; free the disk and run again."
            ) from error

    def close(self) -> None:
        """Syncs and closes the files."""
        for sink in (self._file, self._board):
            if sink:
                with contextlib.suppress(OSError):  # what could not be written was reported when it was written
                    sink.close()
        if self._wandb:
            self._wandb.finish()


def _whole_lines(path: epath.Path) -> list[str]:
    """The lines of a file, less a last one that was cut off."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _start_wandb(project: str, workdir: Workdir) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "config.log.wandb_project is set, but wandb is not installed; pip install 'jaxsft[wandb]'."
        ) from error
    return wandb.init(
        project=project, name=workdir.path.name, id=_run_id(workdir), resume="allow", dir=os.fspath(workdir.path)
    )


def _run_id(workdir: Workdir) -> str:
    """The same for every continuation of a run, and no other's."""
    return f"{workdir.path.name}-{hashlib.sha256(os.fspath(workdir.path).encode()).hexdigest()[:8]}"


def _is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path) or os.fspath(path).startswith("/gcs/")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # run from a checkout on PYTHONPATH
        return "not installed"


def may_change(name: str) -> bool:
    """Whether the field of this path may differ where a run, or a stage of a recipe, goes on."""
    if name == "checkpoint.snapshots":  # by the record those that score a run know which to ask
        return False
    return name.split(".")[-1] == "cache_dir" or any(name == free or name.startswith(f"{free}.") for free in FREE)
