"""What a compression will do and how many bytes that takes, found out before any weight is read."""

import collections
import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsft.adapters.folder import is_adapter
from jaxsft.compression.folder import array_entries, file_name, is_compressed
from jaxsft.compression.groups import Group, check, choose, code_bits, entries, total
from jaxsft.config import CompressConfig
from jaxsft.errors import UserError
from jaxsft.merging.sources import FolderSource, Source, open_source, source_dtype
from jaxsft.models import layout, tensorfiles
from jaxsft.models.architecture import Architecture
from jaxsft.models.checkpoint import resolve
from jaxsft.models.decoder import Decoder
from jaxsft.models.weights import Tensor, tensors
from jaxsft.sharding import make_mesh
from jaxsft.training.runs import is_workdir, started_from

MAY_DIFFER = {"source", "max_positions", "init_std"}  # fields of an architecture that say nothing of its tensors


class Planned(NamedTuple):
    """A tensor, the file that its change goes to, and the groups that it is coded in; () is as it is."""

    tensor: Tensor
    file: str
    groups: tuple[Group, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A compression that can be carried out.

    Attributes:
      config: what was asked for.
      model: the tuned model.
      base: what it was tuned from.
      tensors: all of the model's, in the order of writing.
      dtype: of what is stored as it is, and of the restored model.
    """

    config: CompressConfig
    model: Source
    base: FolderSource
    tensors: list[Planned]
    dtype: np.dtype

    @property
    def file_bytes(self) -> int:
        """Of all weight files, headers with them, if every tensor differs and every change has full rank."""
        files: dict[str, dict[str, Any]] = {}
        for planned in self.tensors:
            held = array_entries(planned.tensor, planned.groups, self.config.group_size, self.dtype)
            files.setdefault(planned.file, {}).update(held)
        return sum(tensorfiles.size(held) for held in files.values())

    def describe(self) -> list[str]:
        """Lines for the one who starts it."""
        lines = [f"  model {self.model.path} ({self.model.fingerprint})"]
        lines.append(f"  base  {self.base.path} ({self.base.fingerprint})")
        kinds = collections.Counter((planned.tensor.shape, planned.groups) for planned in self.tensors)
        for (shape, groups), count in kinds.items():
            if groups:
                lines.append(f"  {count} of [{shape[0]}, {shape[1]}]: {self._words(shape, groups)}")
        plain = [planned.tensor for planned in self.tensors if not planned.groups]
        size = sum(tensor.size for tensor in plain) * self.dtype.itemsize
        lines.append(f"  {len(plain)} tensors as they are where they changed: {size:,} bytes of {self.dtype.name}")
        dense = sum(planned.tensor.size for planned in self.tensors) * self.dtype.itemsize
        lines.append(
            f"  writes {self.file_bytes:,} bytes at most, 1/{dense / self.file_bytes:.2f} of the model's {dense:,}; "
            "less where a tensor is the base's, or its change of lower rank"
        )
        if self.model.whole:
            lines.append(f"  besides, {self.model.path} is opened whole")
        return lines

    def _words(self, shape: tuple[int, int], groups: tuple[Group, ...]) -> str:
        size = total(entries(groups, shape, self.config.group_size))
        vectors = ", ".join(f"{columns} at {bits} bits" for bits, columns in groups)
        dense = 2 * math.prod(shape)
        codes = 8 * dense / code_bits(groups, shape)
        return f"{vectors}: {size:,} bytes each, 1/{dense / size:.2f} of bfloat16 (codes alone 1/{codes:.2f})"


def make_plan(config: CompressConfig) -> Plan:
    """Opens the models and checks everything that can be checked without their weights.

    Raises:
      UserError: see `jaxsft.compression.run.compress`.
    """
    check(config)
    if not config.model:
        raise UserError("config.model is empty; name the model that is to be compressed.")
    model = open_source(config.model, make_mesh(config.mesh))
    base = _open_base(config)
    _check_same(model, base)
    decoder = Decoder(model.arch)
    layout.select(model.arch, decoder.abstract_params(), config.targets, "config.targets")
    dtype = source_dtype(model) if config.dtype == "auto" else jnp.dtype(config.dtype)
    planned = [Planned(tensor, file_name(tensor), _groups(config, tensor)) for tensor in tensors(decoder)]
    return Plan(config, model, base, sorted(planned, key=lambda p: p.file), dtype)


def _open_base(config: CompressConfig) -> FolderSource:
    path = config.base
    if not path:
        if not is_workdir(config.model) and not is_adapter(resolve(config.model)):
            raise UserError(f"{config.model} does not say what it was tuned from; set config.base to that model.")
        path = started_from(config.model, "config.base")
    if is_workdir(path) or is_compressed(resolve(path)) or is_adapter(resolve(path)):
        raise UserError(f"config.base={path} is no model folder; write it out (scripts/export.py), and name that.")
    return FolderSource(path)


def _check_same(model: Source, base: Source) -> None:
    for field in dataclasses.fields(Architecture):
        if field.name not in MAY_DIFFER and getattr(model.arch, field.name) != getattr(base.arch, field.name):
            raise UserError(
                f"{model.path} and {base.path} are models of different shapes ({field.name}); name the base that the "
                "model was tuned from."
            )


def _groups(config: CompressConfig, tensor: Tensor) -> tuple[Group, ...]:
    if len(tensor.shape) != 2 or not layout.matches(config.targets, tensor.logical):
        return ()
    groups = choose(config, tensor.shape)
    if not groups:
        raise UserError(
            f"config.size_ratio {config.size_ratio:g} leaves no singular vector of {tensor.name} {list(tensor.shape)}; "
            "lower it, or leave the tensor out of config.targets."
        )
    return groups
