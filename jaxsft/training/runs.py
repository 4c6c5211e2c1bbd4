"""Runs as their workdirs tell of them: what was trained, on what, from where. No model is made."""

import dataclasses
import hashlib
import json
from typing import Any

from etils import epath

from jaxsft.config import CheckpointConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.models.checkpoint import fingerprint, resolve
from jaxsft.training.checkpoint import Checkpoints, snapshot_steps
from jaxsft.training.saved import find_base
from jaxsft.training.workdir import ADAPTER, SUBMODELS
from jaxsft.validation import from_dict


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run's workdir, to be read array by array.

    Attributes:
      config: the run's.
      checkpoints: of the run; to be closed.
      step: of the last one.
      source: the model folder that it started from, unchanged since.
    """

    config: TrainConfig
    checkpoints: Checkpoints
    step: int
    source: epath.Path


def saved_run(path: str) -> SavedRun:
    """Opens a workdir without loading anything.

    Raises:
      UserError: if there is no checkpoint yet, or the folder that the run started from holds another model by now.
    """
    folder = epath.Path(path)
    record, config = read_record(folder), trained_by(folder)
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint, read_only=True)
    source = resolve(config.model.path)
    if config.model.init != "random":
        check_unchanged(source, folder, record)
    return SavedRun(config, checkpoints, last_step(checkpoints, folder), source)


def is_workdir(path: str) -> bool:
    """Whether a run's workdir is there."""
    return read_record(epath.Path(path)) is not None


def trained_by(path: epath.PathLike) -> TrainConfig:
    """The config of the run in a workdir, which trained one model.

    Raises:
      UserError: if it trained several.
    """
    folder = epath.Path(path)
    run = from_dict(TrainConfig, read_record(folder)["config"], f"{folder / 'config.json'}: config")
    if run.submodels:
        one = folder / SUBMODELS / "0" / ADAPTER
        raise UserError(f"{folder} holds {run.submodels} sub-models; name one's adapter, such as {one}.")
    return run


def started_from(path: str, instead: str) -> str:
    """The model folder whose weights a run started from, or that an adapter is for.

    Args:
      path: the run's workdir, or the adapter's folder.
      instead: the field of the caller's config that names a model where none can be found.

    Raises:
      UserError: if the run started from random weights, or the folder is not there or holds another model by now.
    """
    if not is_workdir(path):
        return str(find_base(resolve(path)))
    folder = epath.Path(path)
    record = read_record(folder)
    run = trained_by(folder)
    if run.model.init == "random":
        raise UserError(f"{folder} started from random weights, which are in no folder; set {instead}.")
    source = resolve(run.model.path)
    check_unchanged(source, folder, record)
    return str(source)


def weights_fingerprint(path: epath.PathLike, step: int | None = None) -> str:
    """Of the weights in a run's workdir: of what it was trained on, how, and for how many steps.

    Args:
      path: the workdir.
      step: of the checkpoint; None is the last.

    Raises:
      UserError: if there is no checkpoint yet.
    """
    folder = epath.Path(path)
    record = read_record(folder)
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig(), read_only=True)
    last = last_step(checkpoints, folder)
    checkpoints.close()
    decides = [record["config"], record["fingerprints"], last if step is None else step]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def snapshots(path: epath.PathLike) -> list[int]:
    """The steps of a finished run whose snapshots are kept, or its last if it was to keep none.

    Raises:
      UserError: if the run is not finished, or one of them is gone.
    """
    folder = epath.Path(path)
    run = trained_by(folder)
    if not (folder / "summary.json").exists():
        raise UserError(f"the run in {folder} is not finished; finish it before its checkpoints are compared.")
    total = json.loads((folder / "summary.json").read_text())["steps"]
    wanted = snapshot_steps(run.checkpoint.snapshots or 1, total)
    checkpoints = Checkpoints(folder / "checkpoints", run.checkpoint, read_only=True)
    kept = checkpoints.steps
    checkpoints.close()
    if missing := sorted(set(wanted) - set(kept)):
        raise UserError(f"{folder} has no checkpoint of step {missing[0]} (it has {kept}); train it again.")
    return wanted


def read_record(folder: epath.Path) -> dict[str, Any] | None:
    """A workdir's config.json, None for anything else."""
    file = folder / "config.json"
    if not file.exists():
        return None
    record = json.loads(file.read_text())
    return record if "kind" in record else None


def last_step(checkpoints: Checkpoints, folder: epath.Path) -> int:
    """Of the checkpoints of a workdir.

    Raises:
      UserError: if there is none.
    """
    if (folder / ADAPTER).exists():
        raise UserError(f"{folder} holds the records of a sub-model; its adapter is {folder / ADAPTER}, name that.")
    if checkpoints.latest is None:
        raise UserError(f"workdir {folder} has no checkpoint yet; wait for the first, or name a model folder.")
    return checkpoints.latest


def check_unchanged(source: epath.Path, folder: epath.Path, record: dict[str, Any]) -> None:
    """Refuses a model folder that is not the one that the run in `folder` started from."""
    if fingerprint(source) != record["fingerprints"]["model"]:
        raise UserError(f"{source} is no longer the model that {folder} was trained on; restore it, or train again.")
