"""Folders of compressed changes, opened as the model that they make of their base.

`compression.json` says what is compressed how, and which base it is of; `delta-*.safetensors`, one file a layer, hold
the arrays. Of a tensor that is in none of them the model has the base's.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxsft.compression.delta import Coded, Factors, decode, product
from jaxsft.compression.groups import Group, entries
from jaxsft.errors import UserError
from jaxsft.models.architecture import Architecture
from jaxsft.models.checkpoint import COMPRESSED, fingerprint, load_architecture, open_tensors, resolve
from jaxsft.models.decoder import Decoder
from jaxsft.models.tensorfiles import TensorFile
from jaxsft.models.weights import Tensor, tensors

KIND = "compression"


class Record(NamedTuple):
    """What a manifest says of a tensor that changed.

    Attributes:
      file: the name of the file that it is in.
      groups: of its singular vectors; () for a tensor that is stored as it is.
    """

    file: str
    groups: tuple[Group, ...]


def is_compressed(folder: epath.PathLike) -> bool:
    """Whether a folder holds what changed of a base."""
    return (epath.Path(folder) / COMPRESSED).exists()


class RestoredModel:
    """A model whose tensors are put together while they are read, each rounded once to the model's dtype.

    It takes the place of the files of `jaxsft.models.checkpoint.open_tensors`.

    Args:
      folder: of a compressed model.
      base: a folder or hub name that takes the place of the one that the folder names.

    Attributes:
      arch: of the model.
      dtype: of its tensors.
      base: the folder of its base.
      template: as `DataConfig.template`; a chat template that is not built in is in the folder.
      condition: as `DataConfig.condition`.

    Raises:
      UserError: if a part is missing or broken, or the base is none or another one by now.
    """

    def __init__(self, folder: epath.PathLike, base: str = ""):
        self._folder = epath.Path(folder)
        manifest = read_manifest(self._folder)
        self.base = _find_base(self._folder, manifest["base"], base)
        self.arch = Architecture.from_hf(manifest["architecture"], f"{self._folder / COMPRESSED}: architecture")
        self.dtype = jnp.dtype(manifest["dtype"])
        self.template, self.condition = manifest["template"], manifest["condition"]
        self._group_size, self._records = manifest["group_size"], manifest["tensors"]
        decoder = Decoder(load_architecture(self.base))
        self._base_files = open_tensors(self.base, decoder)
        self._shapes = {tensor.name: tensor.shape for tensor in tensors(decoder)}
        self._files = {name: self._open(name) for name in {record.file for record in self._records.values()}}
        for name, record in self._records.items():
            self._check(name, record)
        self._factors = functools.lru_cache(maxsize=1)(self._decode)  # of the tensor that is read piece by piece

    @property
    def files(self) -> dict[str, tuple["RestoredModel", str]]:
        """What `jaxsft.models.checkpoint.load_params` reads from."""
        return {tensor.name: (self, tensor.name) for tensor in tensors(Decoder(self.arch))}

    def read(self, name: str, index: Sequence[slice] = ()) -> np.ndarray:
        """A tensor, or the part of it that `index` names, in the model's dtype."""
        record = self._records.get(name)
        if record is not None and not record.groups:
            return self._files[record.file].read(name, index)
        file, key = self._base_files[name]
        array = file.read(key, index, mapped=False)
        if record is None:
            return array.astype(self.dtype)
        return (array.astype(np.float32) + product(self._factors(name), index)).astype(self.dtype)

    def _decode(self, name: str) -> Factors:
        record = self._records[name]
        read = lambda part: self._files[record.file].read(f"{name}.{part}", mapped=False)
        arrays = {part: read(part) for part in entries(record.groups, self._shapes[name], self._group_size)}
        return decode(Coded(self._shapes[name], record.groups, self._group_size, **arrays))

    def _open(self, name: str) -> TensorFile:
        if not (self._folder / name).exists():
            raise UserError(f"{self._folder} holds no {name}, which its {COMPRESSED} names; copy the folder again.")
        return TensorFile(self._folder / name, integers=True)

    def _check(self, name: str, record: Record) -> None:
        """The arrays of a tensor are there, in the sizes that the manifest makes them."""
        if name not in self._shapes:
            raise UserError(f"{self._folder / COMPRESSED} names {name}, which is no tensor of {self.base}.")
        shape, held = self._shapes[name], self._files[record.file].entries
        wanted = {name: shape}
        if record.groups:
            arrays = entries(record.groups, shape, self._group_size)
            wanted = {f"{name}.{part}": size for part, (_, size) in arrays.items()}
        for key, size in wanted.items():
            if key not in held or held[key].shape != size:
                found = f"holds {key} in another size" if key in held else f"has no {key}"
                raise UserError(f"{self._folder / record.file} {found}; copy the folder again.")


def read_manifest(folder: epath.PathLike) -> dict[str, Any]:
    """`compression.json`, its tensors as `Record`s.

    Raises:
      UserError: if it is broken.
    """
    file = epath.Path(folder) / COMPRESSED
    try:
        manifest = json.loads(file.read_text())
        wanted = ("base", "architecture", "dtype", "template", "condition")
        read = {name: manifest[name] for name in wanted} | {"group_size": manifest["config"]["group_size"]}
        groups = lambda record: tuple(Group(bits, columns) for bits, columns in record["groups"])
        records = {name: Record(record["file"], groups(record)) for name, record in manifest["tensors"].items()}
        return read | {"tensors": records}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{file} is no description of a compressed model ({error!r}); copy the folder again."
        ) from error


def array_entries(tensor: Tensor, groups: Sequence[Group], group_size: int, dtype: np.dtype) -> dict[str, Any]:
    """The arrays of a tensor in its file: name -> (dtype, shape); without groups the tensor itself."""
    if not groups:
        return {tensor.name: (dtype, tensor.shape)}
    return {f"{tensor.name}.{part}": entry for part, entry in entries(groups, tensor.shape, group_size).items()}


def file_name(tensor: Tensor) -> str:
    """The file that a tensor's change is in: one a layer, and one each for embedding, final norm and head."""
    head, *rest = tensor.logical.split(".")
    return f"delta-{head}.safetensors" if head != "layers" else f"delta-layer-{int(rest[0]):05d}.safetensors"


def _find_base(folder: epath.Path, held: dict[str, str], instead: str) -> epath.Path:
    how = "name it with --base=FOLDER (config.model.base)"
    try:
        base = resolve(instead or held["name"])
    except UserError as error:
        if instead:
            raise
        raise UserError(
            f"{folder} holds what changed of {held['name']}, which is no folder here and cannot be had from the hub; "
            f"{how}."
        ) from error
    if fingerprint(base) != held["fingerprint"]:
        raise UserError(f"{base} is not the model whose changes {folder} holds; restore it, or {how}.")
    return base
