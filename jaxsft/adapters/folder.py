"""Adapters of any kind as folders: `adapter.json` and `adapter.safetensors`, or PEFT's two files where it is a LoRA.

A folder holds what training made, by logical path, and none of the base's weights: `params.layers.0.attn.q_proj.lora_a`
is a trained array of one layer, `aux.` begins the names of the method's own state.
"""

import json
import typing
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxsft import __version__
from jaxsft.adapters import peft
from jaxsft.config import AdapterConfig, ModelConfig, TypesConfig
from jaxsft.errors import UserError
from jaxsft.models import layout, tensorfiles
from jaxsft.models.architecture import Architecture
from jaxsft.validation import from_dict, to_dict, validate

CONFIG, WEIGHTS = "adapter.json", "adapter.safetensors"
STORED = "adapter_base.json"  # beside PEFT's two files, where the base was quantised

Arrays = dict[str, np.ndarray]  # by logical path, of one layer each
Tree = Any


class Stored(NamedTuple):
    """How the linear maps of a base are stored, as the fields of `ModelConfig` of these names."""

    quantization: str = "none"
    double_quantization: bool = True

    @property
    def words(self) -> str:
        """For messages."""
        if self.quantization == "none":
            return "unquantised"
        return f"as {self.quantization}" + ("" if self.double_quantization else " without double quantisation")


class Card(NamedTuple):
    """What a folder says of its adapter, without its arrays.

    Attributes:
      base: folder or hub name of the model that it was trained on, "" if the folder does not say.
      fingerprint: of that model, "" likewise.
      template: chat template that it was trained with, as `DataConfig.template`.
      condition: that it is to be asked with, as `DataConfig.condition`.
      stored: how that model was stored under it.
      types: of the examples that it was trained on, as `DataConfig.types`; None if the folder does not say.
      kind: as `config.adapter.kind`.
    """

    base: str
    fingerprint: str = ""
    template: str = "auto"
    condition: str = "auto"
    stored: Stored = Stored()
    types: TypesConfig | None = None
    kind: str = "lora"


class Saved(NamedTuple):
    """An adapter outside a run.

    Attributes:
      kind: as `config.adapter.kind`.
      settings: `config.adapter.KIND`.
      params: trained arrays; layers that the targets leave out are missing.
      aux: the method's state.
    """

    kind: str
    settings: Any
    params: Arrays
    aux: Arrays


def is_adapter(folder: epath.PathLike) -> bool:
    """Whether a folder holds an adapter, in either format."""
    return any((epath.Path(folder) / name).exists() for name in (CONFIG, peft.CONFIG))


def read_card(folder: epath.PathLike) -> Card:
    """What a folder says of its adapter.

    Raises:
      UserError: if it holds none, or one of another kind.
    """
    folder = epath.Path(folder)
    if not (folder / CONFIG).exists():
        return Card(peft.read_config(folder).get("base_model_name_or_path") or "", stored=_read_stored(folder))
    contents = _contents(folder)
    named = ("base_name", "base_fingerprint", "template", "condition", "stored", "types", "kind")
    return Card(*(contents[name] for name in named))


def load_adapter(folder: epath.PathLike, arch: Architecture) -> Saved:
    """Reads an adapter.

    Args:
      folder: in either format.
      arch: the base's sizes.

    Raises:
      UserError: if files are missing or broken, or do not belong to this model.
    """
    folder = epath.Path(folder)
    if not (folder / CONFIG).exists():
        tree, settings = peft.load_peft(folder, arch)
        arrays = {name: np.asarray(array) for name, array in layout.unstack(arch, tree).items()}
        own = {name: a for name, a in arrays.items() if layout.matches(settings.targets, name)}
        return Saved("lora", settings, own, {})
    contents = _contents(folder)
    kind, hints = contents["kind"], typing.get_type_hints(AdapterConfig)
    if kind not in hints or not isinstance(contents["config"], dict):
        raise UserError(f"{folder / CONFIG}: kind is {kind!r}, which this version does not know; use a newer one.")
    settings = from_dict(hints[kind], contents["config"], f"{folder / CONFIG}: config")
    validate(settings, f"{folder / CONFIG}: config")
    if not (folder / WEIGHTS).exists():
        raise UserError(f"{folder} holds no {WEIGHTS}; copy the folder again.")
    file = tensorfiles.TensorFile(folder / WEIGHTS, integers=True)
    part = lambda prefix: {n.removeprefix(prefix): file.read(n) for n in file.entries if n.startswith(prefix)}
    return Saved(kind, settings, part("params."), part("aux."))


def save_adapter(folder: epath.PathLike, saved: Saved, card: Card) -> None:
    """Writes the two files into an existing folder, `adapter.json` last."""
    folder = epath.Path(folder)
    tensors = {f"params.{n}": a for n, a in saved.params.items()} | {f"aux.{n}": a for n, a in saved.aux.items()}
    entries = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    tensorfiles.write(folder / WEIGHTS, entries, tensors.__getitem__)
    base = {"name": card.base, "fingerprint": card.fingerprint, **card.stored._asdict()}
    contents = {"kind": saved.kind, "config": to_dict(saved.settings), "base": base}
    contents |= {"template": card.template, "condition": card.condition}
    contents |= {"types": to_dict(card.types or TypesConfig()), "version": __version__}
    (folder / CONFIG).write_text(json.dumps(contents, indent=2) + "\n")


def save_stored(folder: epath.PathLike, stored: Stored) -> None:
    """Says in a file of its own how the base of an adapter in PEFT's format is stored, where it is quantised."""
    if stored.quantization != "none":
        (epath.Path(folder) / STORED).write_text(json.dumps(stored._asdict(), indent=2) + "\n")


def collect(arch: Architecture, tree: Tree, mask: Tree | None = None) -> Arrays:
    """The arrays of a tree by logical path, on the host; of masked ones the layers that are trained.

    Args:
      arch: the model.
      tree: a method's `params` or `aux`.
      mask: its `Method.update_mask`.
    """
    arrays = {}
    trained = dict(layout.leaves(mask)) if mask is not None else {}
    for path, leaf in layout.leaves(tree):
        names, array = layout.logical_paths(arch, path), np.asarray(leaf)
        if path[0] != "stacks":
            arrays[names[0]] = array
            continue
        rows = np.asarray(trained.get(path, True))
        wanted = np.broadcast_to(rows.reshape(len(rows), -1).any(1) if rows.ndim else rows, len(names))
        arrays |= {name: array[row] for row, name in enumerate(names) if wanted[row]}
    return arrays


def overlay(arch: Architecture, tree: Tree, arrays: Arrays, where: str, needed: Arrays | None = None) -> Tree:
    """The values of saved arrays in place of those of a tree.

    Args:
      arch: the model.
      tree: arrays of a fresh run.
      arrays: by logical path; a tree's arrays that are missing there stay as they are.
      where: what holds them, for errors.
      needed: arrays that must be there.

    Returns:
      Like `tree`: NumPy arrays where anything is replaced, the arrays themselves elsewhere.

    Raises:
      UserError: for an array that the tree has no place for, another shape, or one that is missing.
    """
    left = dict(arrays)
    if missing := sorted((needed or {}).keys() - arrays.keys()):
        raise UserError(f"{where} lacks {missing[0]} and {len(missing) - 1} more arrays of this adapter on this model.")

    def fill(path: layout.Path, leaf: Any) -> Any:
        names = layout.logical_paths(arch, path)
        if not any(name in left for name in names):
            return leaf
        values = np.array(leaf)
        for row, name in enumerate(names):
            if name not in left:
                continue
            array, at = left.pop(name), (row if path[0] == "stacks" else ...)
            if array.shape != values[at].shape or array.dtype.kind != values.dtype.kind:
                raise UserError(
                    f"{where}: {name} is {array.dtype}{list(array.shape)}, but this adapter on this model has "
                    f"{values.dtype}{list(values[at].shape)}."
                )
            values[at] = array
        return values

    filled = layout.map_leaves(fill, tree)
    if left:
        raise UserError(f"{where}: {next(iter(left))} is no array of this adapter on this model; use its own base.")
    return filled


def _contents(folder: epath.Path) -> dict[str, Any]:
    try:
        contents = json.loads((folder / CONFIG).read_text())
        base = {f"base_{name}": contents["base"][name] for name in ("name", "fingerprint")}
        base["stored"] = _stored(contents["base"], f"{folder / CONFIG}: base")
        base["types"] = from_dict(TypesConfig, contents.get("types", {}), f"{folder / CONFIG}: types")
        return base | {name: contents[name] for name in ("kind", "config", "template", "condition")}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG} is no description of an adapter ({error!r}); copy it again.") from error


def _read_stored(folder: epath.Path) -> Stored:
    """Of a folder in PEFT's format; unquantised where nothing is said."""
    if not (folder / STORED).exists():
        return Stored()
    try:
        return _stored(json.loads((folder / STORED).read_text()), str(folder / STORED))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder / STORED} is no description of a base ({error!r}); copy it again.") from error


def _stored(contents: dict[str, Any], where: str) -> Stored:
    stored = Stored(*(contents.get(name, default) for name, default in Stored._field_defaults.items()))
    validate(ModelConfig(**stored._asdict()), where)
    return stored
