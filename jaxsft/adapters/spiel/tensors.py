"""Tuned weights as the authors' code keeps them: `adapter_config.json` and `adapter_model.safetensors`.

A tuned map has two tensors, `base_model.model.MODULE.sft_delta.values` [k] and `.indices` int32 [k]. Their matrices are
[out, in] where ours are [in, out], so a position p = i * out + o of ours is o * in + i of theirs; both lists ascend.
"""

import json
from typing import Any

import numpy as np
from etils import epath

from jaxsft.adapters.spiel import budget
from jaxsft.config import SpIELConfig
from jaxsft.errors import UserError
from jaxsft.models import layout, tensorfiles
from jaxsft.models.architecture import Architecture
from jaxsft.models.weights import module_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, MARK = "base_model.model.", ".sft_delta."

Tuned = dict[str, tuple[np.ndarray, np.ndarray]]  # module -> int32 positions in the kernel [in, out], float32 values


def save_sft(path: epath.PathLike, arch: Architecture, tuned: Tuned, config: SpIELConfig, base: str) -> None:
    """Writes the two files.

    Args:
      path: folder; made if absent.
      arch: the base's sizes.
      tuned: the weights of each map by logical path, less the padding of lists (`tuned_weights`).
      config: the adapter's.
      base: folder or hub name of the base model.
    """
    tensors, kinds = {}, set()
    for module, (idx, values) in tuned.items():
        name = module_name(arch, module)
        kinds.add(name.rpartition(".")[2])
        theirs, values = to_torch(idx, values, _shapes(arch)[module])
        tensors |= {f"{PREFIX}{name}{MARK}values": values, f"{PREFIX}{name}{MARK}indices": theirs}
    contents = {
        "peft_type": "SFT",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "target_modules": sorted(kinds),
        "num_tunable_weights": budget.total(arch, config),
        "selection_algorithm": {"ag": "rigl", "ma": "sm3"}[config.variant],
        "reselection_steps": config.reselect_every,
        "selection_accumulation_steps": config.phase,
        "initial_reselection_rate": config.rate,
        "inference_mode": True,
    }
    path = epath.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    entries = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    tensorfiles.write(path / WEIGHTS, entries, tensors.__getitem__)
    (path / CONFIG).write_text(json.dumps(contents, indent=2) + "\n")


def load_sft(path: epath.PathLike, arch: Architecture) -> Tuned:
    """Reads the weights of every tuned map; an adapter's name behind the mark is passed over.

    Raises:
      UserError: if files are missing, or do not belong to this model.
    """
    file = epath.Path(path) / WEIGHTS
    if not file.exists():
        raise UserError(f"{path} holds no {WEIGHTS}; name a folder with tuned weights.")
    modules = {f"{PREFIX}{module_name(arch, module)}": module for module in _shapes(arch)}
    read, found = tensorfiles.TensorFile(file, integers=True), {}
    for name in read.entries:
        module, mark, rest = name.partition(MARK)
        part = rest.rpartition(".")[2]
        if not mark or module not in modules or part not in ("values", "indices"):
            raise UserError(f"{file}: {name} is no tuned weight of this model; use the base it was made for.")
        found.setdefault(modules[module], {})[part] = read.read(name)
    tuned = {}
    for module, parts in found.items():
        size = int(np.prod(_shapes(arch)[module]))
        if len(parts) != 2 or len(parts["values"]) != len(parts["indices"]):
            raise UserError(f"{file}: {module} has not a value for each position; copy the file again.")
        if np.any(parts["indices"] < 0) or np.any(parts["indices"] >= size):
            raise UserError(
                f"{file}: {module} has positions beyond its {size:,} weights; use the base it was made for."
            )
        tuned[module] = from_torch(parts["indices"], parts["values"], _shapes(arch)[module])
    return tuned


def tuned_weights(method: Any, params: Any, aux: Any) -> Tuned:
    """The weights of each targeted map by logical path.

    Args:
      method: a `jaxsft.adapters.spiel.method.SpIEL`.
      params: its trained arrays.
      aux: its state.
    """
    tuned = {}
    for path, idx in layout.leaves(aux["maps"]):
        if path[-1] != "idx":
            continue
        delta, count = layout.get(params, path[:-1])["delta"], method.counts(method.shape(path[:-1]))[0]
        for row, module in enumerate(layout.logical_paths(method.arch, path[:-1])):
            if method.rows(path[:-1])[row]:
                tuned[module] = np.asarray(idx[row][:count]), np.asarray(delta[row][:count], np.float32)
    return tuned


def to_torch(idx: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions in a matrix of `shape` = (in, out) as positions in its transpose, ascending, and their values."""
    theirs = (idx % shape[1]).astype(np.int64) * shape[0] + idx // shape[1]
    order = np.argsort(theirs)
    return theirs[order].astype(np.int32), values[order]


def from_torch(idx: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `to_torch`."""
    return to_torch(idx, np.asarray(values, np.float32), shape[::-1])


def _shapes(arch: Architecture) -> dict[str, tuple[int, int]]:
    """(in, out) of every linear map in a layer, by logical path."""
    flat = layout.flatten(arch, budget.abstract_base(arch))
    return {
        n.rpartition(".")[0]: leaf.shape[1:]
        for n, (leaf, row) in flat.items()
        if row is not None and n.endswith(".kernel")
    }
