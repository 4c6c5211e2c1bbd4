"""`--model=...` of every script: a Hugging Face folder, an adapter's folder, a hub name, or a run's workdir, opened the
same way."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from jaxsft.adapters.folder import Saved, Stored, collect, is_adapter, load_adapter, read_card
from jaxsft.adapters.method import Method, Parts
from jaxsft.compression.folder import RestoredModel, is_compressed
from jaxsft.config import AdapterConfig, ModelConfig, RegularizersConfig, TrainConfig, TypesConfig
from jaxsft.data.classes import inference_condition
from jaxsft.data.tokenizer import Tokenizer, load_tokenizer
from jaxsft.errors import UserError
from jaxsft.models.architecture import Architecture
from jaxsft.models.checkpoint import fingerprint, load_architecture, load_params, resolve
from jaxsft.models.decoder import Decoder
from jaxsft.models.quantized import dequantize_params
from jaxsft.sharding import replicated
from jaxsft.training.checkpoint import Checkpoints
from jaxsft.training.program import Program, abstract_batch, architecture, build, dtypes
from jaxsft.training.runs import check_unchanged, is_workdir, last_step, read_record, trained_by, weights_fingerprint
from jaxsft.training.saved import begin, check_start, find_base, load_folder

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
      companions: the folder of the tokenizer's files; None is `source`.
      types: of the examples it was trained on, as `DataConfig.types`; None for a plain model folder.
      unquantized: loads the base as it was before it was quantised; None where it never was.
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
    companions: epath.Path | None = None
    types: TypesConfig | None = None
    unquantized: Callable[[], Tree] | None = None

    @property
    def adapter_params(self) -> Tree | None:
        """The trained arrays of an adapter, None without one."""
        return None if self.adapters is None or self.parts is None else self.parts.params

    def merged(self, merge_base: str = "dequantised") -> Tree:
        """Parameters of a plain model that computes the same.

        Args:
          merge_base: what an adapter over a quantised base is added to: "dequantised", the weights that it was trained
            with, or "full_precision", those that were quantised, which computes something else by as much as quantising
            changed them.

        Raises:
          UserError: if the base was not quantised and `merge_base` is not the default, or there is no adapter.
        """
        if merge_base != "dequantised":
            if self.unquantized is None or self.parts is None or self.method is None:
                raise UserError(
                    f"there is no adapter over a quantised base, so a merge base of {merge_base!r} is none."
                )
            plain = self.parts._replace(frozen={**self.parts.frozen, "base": self.unquantized()})
            return self.method.merge(plain)
        if self.method is None or self.parts is None:
            return dequantize_params(self.params)
        return self.method.merge(self.parts)


def open_model(path: str, config: ModelConfig, mesh: Mesh, step: int | None = None) -> OpenModel:
    """Loads a model into the mesh.

    Args:
      path: a Hugging Face folder, an adapter's, that of a compressed change, a hub name or a workdir, whose last
        checkpoint is taken.
      config: dtypes and attention; the `base` of an adapter, a change or a run, where it has moved; and how a model
        folder is quantised. A workdir's base always is as it was in training, and so is an adapter's, as its folder
        says, unless this names another quantisation. Its own `path` is not read. `param_dtype` "auto" keeps a
        workdir's.
      mesh: where the parameters go.
      step: of a workdir, the checkpoint that is taken instead.

    Raises:
      UserError: if there is no such model, or the run has no checkpoint yet or none of that step.
    """
    folder = epath.Path(path)
    record = read_record(folder)
    if record is not None:
        return _open_run(folder, record, config, mesh, step)
    source = resolve(path)
    if is_adapter(source):
        return _open_adapter(source, config, mesh)
    if is_compressed(source):
        return _open_compressed(source, config, mesh)
    if config.base:
        raise UserError(f"{path} is a whole model, so --base (config.model.base) has no effect on it; leave it out.")
    dtype, param_dtype = dtypes(config, mesh)
    decoder = Decoder(load_architecture(source), dtype=dtype, remat="none", attention=config.attention)
    stored = config.quantization, config.double_quantization
    params = load_params(source, decoder, mesh, param_dtype, *stored)
    return OpenModel(decoder, params, None, None, None, load_tokenizer(str(source)), "auto", source)


def tokenizer_source(path: str) -> str:
    """The folder or hub name of a model's tokenizer: of a workdir that of the model that its run started from, and of
    an adapter without one that of its base."""
    if is_workdir(path):
        return trained_by(path).model.path
    return str(companions(folder)) if is_adapter(folder := resolve(path)) else path


def run_adapter(path: epath.PathLike, mesh: Mesh) -> Saved:
    """The adapter of a run's last checkpoint, without its base.

    Raises:
      UserError: if there is no checkpoint yet, or the run trained no adapter.
    """
    folder = epath.Path(path)
    run = trained_by(folder)
    if run.adapter.kind == "none":
        raise UserError(f"{folder} is a run of full fine-tuning, which has no adapter; name its export as the model.")
    arch = architecture(run.model, resolve(run.model.path))
    checkpoints = Checkpoints(folder / "checkpoints", run.checkpoint, read_only=True)
    program = _reading(run, arch, mesh)
    everywhere = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=replicated(mesh))
    state = checkpoints.restore_parameters(last_step(checkpoints, folder), jax.tree.map(everywhere, program.state))
    checkpoints.close()
    params = state.aux.get("ema", state.params)
    mask = program.method.update_mask(params)
    settings = getattr(run.adapter, run.adapter.kind)
    return Saved(run.adapter.kind, settings, collect(arch, params, mask), collect(arch, state.aux["method"]))


def open_start(config: TrainConfig, arch: Architecture, mesh: Mesh) -> tuple[Saved | None, dict[str, str]]:
    """The adapter that `config.adapter.start` names, None where it names none, and its fingerprint for the record.

    Raises:
      UserError: if it cannot be read, or is not of the kind and settings of the run.
    """
    path = config.adapter.start
    if not path:
        return None, {}
    if is_workdir(path):
        saved, own = run_adapter(path, mesh), weights_fingerprint(path)
    else:
        saved, own = load_folder(path, arch), fingerprint(path)
    check_start(config, arch, saved)
    return saved, {"adapter_start": own}


def stored_base(path: epath.PathLike) -> Stored:
    """How the base under the adapter of a workdir or a folder was stored."""
    if not is_workdir(path):
        return read_card(resolve(path)).stored
    run = trained_by(path).model
    return Stored(run.quantization, run.double_quantization)


def check_start_base(config: TrainConfig) -> str:
    """Checks that the adapter that `config.adapter.start` names was trained on the run's model.

    Returns:
      What is to be known where that was stored otherwise, "" for nothing.

    Raises:
      UserError: if it was trained on another model.
    """
    path, model = config.adapter.start, config.model
    workdir, stored = is_workdir(path), stored_base(path)
    own = read_record(epath.Path(path))["fingerprints"]["model"] if workdir else read_card(resolve(path)).fingerprint
    if own and own != fingerprint(model.path):
        raise UserError(
            f"config.adapter.start={path} was trained on another model than config.model.path={model.path}; name the "
            "one that it was trained on."
        )
    now = Stored(model.quantization, model.double_quantization)
    if stored.words == now.words:
        return ""
    return f"config.adapter.start={path} was trained over a base stored {stored.words}; this run's is {now.words}"


def _open_run(
    folder: epath.Path, record: dict[str, Any], config: ModelConfig, mesh: Mesh, step: int | None
) -> OpenModel:
    run = trained_by(folder)
    checkpoints = Checkpoints(folder / "checkpoints", run.checkpoint, read_only=True)
    last = last_step(checkpoints, folder)
    if step is not None and step not in checkpoints.steps:
        raise UserError(f"workdir {folder} has no checkpoint of step {step}; it has {checkpoints.steps}.")
    source = resolve(config.base or run.model.path)
    run.model.dtype, run.model.attention = config.dtype, config.attention
    run.model.param_dtype = run.model.param_dtype if config.param_dtype == "auto" else config.param_dtype
    program = _reading(run, architecture(run.model, source), mesh)
    frozen = program.frozen
    if program.asks_base:
        check_unchanged(source, folder, record)
        frozen = program.frozen_only(program.load_base(source))
    state = checkpoints.restore_parameters(last if step is None else step, program.state)
    checkpoints.close()
    parts = frozen.parts(state.aux.get("ema", state.params), state.aux["method"])
    return bound(program, parts, run, source)


def bound(
    program: Program, parts: Parts, run: TrainConfig, source: epath.Path, tokenizer: epath.Path | None = None
) -> OpenModel:
    """A run's model, ready to be called.

    Args:
      program: its program.
      parts: its arrays.
      run: its config; of `data`, how the model is prompted is read.
      source: the folder of the model that it started from.
      tokenizer: that of its tokenizer, if it is another.
    """
    params, adapters = program.method.compose(parts, {})
    return OpenModel(
        program.decoder,
        params,
        adapters,
        program.method,
        parts,
        load_tokenizer(str(tokenizer or source)),
        run.data.template,
        source,
        inference_condition(run.data),
        tokenizer,
        run.data.types,
        unquantized=None if run.model.quantization == "none" else lambda: _plain_base(run, program, source),
    )


def _plain_base(run: TrainConfig, program: Program, source: epath.Path) -> Tree:
    """The base of a run before it was quantised."""
    plain = dataclasses.replace(run, model=dataclasses.replace(run.model, quantization="none"))
    return _reading(plain, program.decoder.arch, program.mesh).load_base(source)


def _open_adapter(folder: epath.Path, config: ModelConfig, mesh: Mesh) -> OpenModel:
    source, card = find_base(folder, config.base), read_card(folder)
    arch = load_architecture(source)
    saved = load_adapter(folder, arch)
    stored = card.stored._asdict() if config.quantization == "none" else {}
    run = TrainConfig(model=dataclasses.replace(config, path=str(source), init="pretrained", **stored))
    run.adapter = AdapterConfig(saved.kind, **{saved.kind: saved.settings})
    run.data.template, run.data.condition = card.template, card.condition
    program = _reading(run, arch, mesh)
    state, frozen = program.initial(program.load_base(source))
    state, frozen = begin(program, state, frozen, saved, str(folder))
    parts = frozen.parts(state.params, state.aux["method"])
    return dataclasses.replace(bound(program, parts, run, source, companions(folder, source)), types=card.types)


def _open_compressed(folder: epath.Path, config: ModelConfig, mesh: Mesh) -> OpenModel:
    """Put together with its base, while it is read, into a plain model."""
    restored = RestoredModel(folder, config.base)
    dtype, param_dtype = dtypes(config, mesh)
    decoder = Decoder(restored.arch, dtype=dtype, remat="none", attention=config.attention)
    stored = config.quantization, config.double_quantization
    params = load_params(folder, decoder, mesh, param_dtype, *stored, files=restored.files)
    asked = restored.template, restored.base, restored.condition
    return OpenModel(decoder, params, None, None, None, load_tokenizer(str(folder)), *asked, companions=folder)


def companions(folder: epath.Path, base: epath.Path | None = None) -> epath.Path:
    """The folder of the tokenizer of an adapter: its own, or its base's."""
    own = (folder / "tokenizer.json").exists() and (folder / "tokenizer_config.json").exists()
    return folder if own else base or find_base(folder)


def _reading(run: TrainConfig, arch: Architecture, mesh: Mesh) -> Program:
    """The program of a run of which no step is run: it is built for its shapes, and nothing is kept for its loss."""
    run.model.remat, run.batch_size, run.accumulate = "none", mesh.size, 1
    run.objective.regularizers = RegularizersConfig()
    return build(run, arch, mesh, 1, abstract_batch(mesh.size, 1, 1))
