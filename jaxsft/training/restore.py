"""`--model=...` of every script: a Hugging Face folder, a hub name, or a run's workdir, opened the same way."""

import dataclasses
import hashlib
import json
from typing import Any

from etils import epath
from jax.sharding import Mesh

from jaxsft.adapters.method import Method, Parts
from jaxsft.config import CheckpointConfig, ModelConfig, RegularizersConfig, TrainConfig
from jaxsft.data.classes import inference_condition
from jaxsft.data.tokenizer import Tokenizer, load_tokenizer
from jaxsft.errors import UserError
from jaxsft.models.checkpoint import fingerprint, load_architecture, load_params, resolve
from jaxsft.models.decoder import Decoder
from jaxsft.training.checkpoint import Checkpoints, snapshot_steps
from jaxsft.training.program import abstract_batch, architecture, build, dtypes
from jaxsft.validation import from_dict

Tree = Any


@dataclasses.dataclass(frozen=True)
class OpenModel:
    """A model ready to be called.

    Attributes:
      decoder: its forward pass.
      params: the base's parameters (of a fully fine-tuned run: the trained ones).
      adapters: nodes for `Decoder.forward`, or None.
      method: how a run trained it; None for a plain model folder.
      parts: the run's arrays, for `method.merge`; None for a plain model folder.
      tokenizer: its tokenizer.
      template: the chat template it was trained with, as `DataConfig.template`; "auto" for a plain model folder.
      source: the Hugging Face folder from which config, tokenizer and names come.
      condition: the condition it is to be asked with, as `DataConfig.condition`; "auto" for none.
    """

    decoder: Decoder
    params: Tree
    adapters: Tree | None
    method: Method | None
    parts: Parts | None
    tokenizer: Tokenizer
    template: str
    source: epath.Path
    condition: str = "auto"

    @property
    def adapter_params(self) -> Tree | None:
        """The trained arrays of an adapter, None without one."""
        return None if self.adapters is None or self.parts is None else self.parts.params

    def merged(self) -> Tree:
        """Parameters of a plain model that computes the same."""
        return self.params if self.method is None or self.parts is None else self.method.merge(self.parts)


def open_model(path: str, config: ModelConfig, mesh: Mesh, step: int | None = None) -> OpenModel:
    """Loads a model into the mesh.

    Args:
      path: a Hugging Face folder, a hub name or a workdir, whose last checkpoint is taken.
      config: dtypes and attention; its own `path` is not read. `param_dtype` "auto" keeps a workdir's.
      mesh: where the parameters go.
      step: of a workdir, the checkpoint that is taken instead.

    Raises:
      UserError: if there is no such model, or the run has no checkpoint yet or none of that step.
    """
    folder = epath.Path(path)
    record = _record(folder)
    if record is not None:
        return _open_run(folder, record, config, mesh, step)
    source = resolve(path)
    dtype, param_dtype = dtypes(config, mesh)
    decoder = Decoder(load_architecture(source), dtype=dtype, remat="none", attention=config.attention)
    params = load_params(source, decoder, mesh, param_dtype)
    return OpenModel(decoder, params, None, None, None, load_tokenizer(str(source)), "auto", source)


def started_from(path: str) -> str:
    """The model folder whose weights the run in a workdir started from.

    Raises:
      UserError: if it started from random weights, or the folder holds another model by now.
    """
    folder = epath.Path(path)
    record = _record(folder)
    run = from_dict(TrainConfig, record["config"], f"{folder / 'config.json'}: config")
    if run.model.init == "random":
        raise UserError(
            f"{folder} started from random weights, which are in no folder; set config.reference to a model."
        )
    source = resolve(run.model.path)
    _check_unchanged(source, folder, record)
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
    record = _record(folder)
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig(), read_only=True)
    last = _last_step(checkpoints, folder)
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


def trained_by(path: epath.PathLike) -> TrainConfig:
    """The config of the run in a workdir."""
    folder = epath.Path(path)
    return from_dict(TrainConfig, _record(folder)["config"], f"{folder / 'config.json'}: config")


def tokenizer_source(path: str) -> str:
    """The folder or hub name of a model's tokenizer: of a workdir that of the model that its run started from."""
    return trained_by(path).model.path if is_workdir(path) else path


def is_workdir(path: str) -> bool:
    """Whether a run's workdir is there."""
    return _record(epath.Path(path)) is not None


def _record(folder: epath.Path) -> dict[str, Any] | None:
    """A workdir's config.json, None for anything else."""
    file = folder / "config.json"
    if not file.exists():
        return None
    record = json.loads(file.read_text())
    return record if "kind" in record else None


def _open_run(
    folder: epath.Path, record: dict[str, Any], config: ModelConfig, mesh: Mesh, step: int | None
) -> OpenModel:
    run = from_dict(TrainConfig, record["config"], f"{folder / 'config.json'}: config")
    checkpoints = Checkpoints(folder / "checkpoints", run.checkpoint, read_only=True)
    last = _last_step(checkpoints, folder)
    if step is not None and step not in checkpoints.steps:
        raise UserError(f"workdir {folder} has no checkpoint of step {step}; it has {checkpoints.steps}.")
    source = resolve(run.model.path)
    run.model.dtype, run.model.attention, run.model.remat = config.dtype, config.attention, "none"
    run.model.param_dtype = run.model.param_dtype if config.param_dtype == "auto" else config.param_dtype
    run.batch_size, run.accumulate = mesh.size, 1  # a program is built for its shapes; no step is run,
    run.objective.regularizers = RegularizersConfig()  # so nothing is kept for its loss
    program = build(run, architecture(run.model, source), mesh, 1, abstract_batch(mesh.size, 1, 1))
    frozen = program.frozen
    if program.asks_base:
        _check_unchanged(source, folder, record)
        frozen = program.frozen_only(program.load_base(source))
    state = checkpoints.restore_parameters(last if step is None else step, program.state)
    checkpoints.close()
    parts = frozen.parts(state.aux.get("ema", state.params), state.aux["method"])
    params, adapters = program.method.compose(parts, {})
    tokenizer = load_tokenizer(str(source))
    asked = run.data.template, source, inference_condition(run.data)
    return OpenModel(program.decoder, params, adapters, program.method, parts, tokenizer, *asked)


def _last_step(checkpoints: Checkpoints, folder: epath.Path) -> int:
    if checkpoints.latest is None:
        raise UserError(f"workdir {folder} has no checkpoint yet; wait for the first, or name a model folder.")
    return checkpoints.latest


def _check_unchanged(source: epath.Path, folder: epath.Path, record: dict[str, Any]) -> None:
    if fingerprint(source) != record["fingerprints"]["model"]:
        raise UserError(f"{source} is no longer the model that {folder} was trained on; restore it, or train again.")
