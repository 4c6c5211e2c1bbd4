"""Adapters that come from elsewhere into a run: opened over their base, or as what training starts from."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from jaxsft.adapters.folder import Saved, collect, is_adapter, load_adapter, overlay, read_card
from jaxsft.adapters.registry import make_method
from jaxsft.config import TrainConfig
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.checkpoint import fingerprint, resolve
from jaxsft.models.decoder import Decoder
from jaxsft.training.program import Program
from jaxsft.training.state import Frozen, TrainState

Tree = Any


def find_base(folder: epath.Path, instead: str = "") -> epath.Path:
    """The model folder under an adapter's folder.

    Args:
      folder: an adapter's.
      instead: a folder or hub name that takes the place of the one that the adapter names.

    Raises:
      UserError: if it is not there, saying how to name another, or it is another model than the adapter's.
    """
    card = read_card(folder)
    how = "name it with --base=FOLDER (config.model.base)"
    if not (instead or card.base):
        raise UserError(f"{folder} is an adapter that does not say what model it is for; {how}.")
    try:
        base = resolve(instead or card.base)
    except UserError as error:
        if instead:
            raise
        raise UserError(
            f"{folder} is an adapter for {card.base}, which is no folder here and cannot be had from the hub; {how}."
        ) from error
    if is_adapter(base):
        raise UserError(f"{base} is itself an adapter; {how}.")
    if card.fingerprint and fingerprint(base) != card.fingerprint:
        raise UserError(f"{base} is not the model that {folder} was trained on; restore it, or {how}.")
    return base


def begin(program: Program, state: TrainState, frozen: Frozen, saved: Saved, where: str) -> tuple[TrainState, Frozen]:
    """A fresh run's arrays with the adapter's in their place.

    Args:
      program: the run's.
      state, frozen: from `Program.initial`.
      saved: the adapter.
      where: it came from, for errors.

    Raises:
      UserError: if it does not fit the run's model and method.
    """
    method, arch = program.method, program.decoder.arch
    needed = collect(arch, state.params, method.update_mask(state.params))
    params = _place(overlay(arch, state.params, saved.params, where, needed), state.params)
    aux = dict(state.aux)
    last = overlay(arch, aux["method"], saved.aux, where, collect(arch, aux["method"]))
    aux["method"] = _place(method.restarted(last), aux["method"])
    if "ema" in aux:
        aux["ema"] = jax.tree.map(jnp.copy, params)
    frozen = begin_frozen(program, frozen, saved, where)
    return dataclasses.replace(state, params=params, aux=aux), frozen


def begin_frozen(program: Program, frozen: Frozen, saved: Saved, where: str) -> Frozen:
    """What a term of the loss keeps of the start is that of the adapter; for a resumed run, from `frozen_only`."""
    if frozen.start is None:
        return frozen
    start = overlay(program.decoder.arch, frozen.start, saved.params, where)
    return dataclasses.replace(frozen, start=_place(start, frozen.start))


def check_start(config: TrainConfig, arch: Architecture, saved: Saved) -> None:
    """Checks that what `config.adapter.start` names is an adapter of the kind and settings that the run trains.

    Raises:
      UserError: naming the first setting that differs, and its value.
    """
    where, kind = f"config.adapter.start={config.adapter.start}", config.adapter.kind
    if saved.kind != kind:
        raise UserError(f"{where} is of the kind {saved.kind!r}, but config.adapter.kind is {kind!r}; set it to that.")
    method, settings = make_method(config, arch, 1), getattr(config.adapter, kind)
    for field in dataclasses.fields(settings):
        old, new = getattr(saved.settings, field.name), getattr(settings, field.name)
        if field.name in method.may_change:
            continue
        if field.name == "targets":
            if (modules := _modules(saved.params)) != (wanted := _targets(arch, new)):
                odd = sorted(modules ^ wanted)[0]
                raise UserError(
                    f"{where} {'has' if odd in modules else 'has no'} adapter at {odd}, which "
                    f"config.adapter.{kind}.targets {'leave out' if odd in modules else 'name'}; set them to {old!r}."
                )
        elif old != new:
            raise UserError(f"{where} has {field.name} = {old!r}, but config.adapter.{kind}.{field.name} is {new!r}; "
                            "set it to that.")  # fmt: skip


def load_folder(path: epath.PathLike, arch: Architecture) -> Saved:
    """The adapter in a folder or of a hub name.

    Raises:
      UserError: if it is none.
    """
    folder = resolve(path)
    if not is_adapter(folder):
        raise UserError(f"{path} is no adapter: it has neither adapter.json nor adapter_config.json, nor is it a run.")
    return load_adapter(folder, arch)


def _modules(params: dict[str, Any]) -> set[str]:
    return {name.rpartition(".")[0] for name in params}


def _targets(arch: Architecture, patterns: tuple[str, ...]) -> set[str]:
    """The linear maps that patterns name."""
    names = [
        name.rpartition(".")[0]
        for path, _ in layout.leaves(Decoder(arch).abstract_params())
        if path[-1] in ("kernel", "embedding")
        for name in layout.logical_paths(arch, path)
    ]
    return {name for name in names if layout.matches(patterns, name)}


def _place(tree: Tree, like: Tree) -> Tree:
    """Host arrays onto the devices, in the shardings and dtypes of the arrays that they replace."""

    def put(new: Any, old: jax.Array) -> jax.Array:
        if new is old:
            return old
        new = new.astype(old.dtype)
        return jax.make_array_from_callback(new.shape, old.sharding, lambda index: new[index])

    return jax.tree.map(put, tree, like)
