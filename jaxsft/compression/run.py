"""Compresses what changed of a base, a matrix at a time: what `scripts/compress.py` and the stage "compress" do.

Of each tensor the model's and the base's are read, and the difference is decomposed, coded and let go of; the codes of
a layer are in memory until its file is written. The folder appears when it is whole, and in it is `compression.json`.
"""

import itertools
import json
import math
import platform
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from jaxsft import __version__
from jaxsft.compression.delta import decode, decompose, encode, product, rank
from jaxsft.compression.folder import KIND
from jaxsft.compression.groups import cut
from jaxsft.compression.plan import Plan, Planned, make_plan
from jaxsft.compression.report import Figures, shares, table
from jaxsft.config import CompressConfig
from jaxsft.data.templates import BUILT_IN, NO_TEMPLATE
from jaxsft.errors import UserError
from jaxsft.files import check_new_folder, new_folder, write_json
from jaxsft.merging.sources import Source
from jaxsft.models import tensorfiles
from jaxsft.models.checkpoint import COMPRESSED, copy_companions
from jaxsft.models.weights import Tensor
from jaxsft.training.export import write_template
from jaxsft.validation import to_dict

Arrays = dict[str, np.ndarray]


def compress(config: CompressConfig, output: epath.PathLike) -> str:
    """Stores what changed of a base in a new folder, which `jaxsft.training.restore.open_model` opens.

    Every process calls it; process 0 writes.

    Args:
      config: validated.
      output: a new or empty folder, local or `gs://`.

    Returns:
      Lines on what was lost, and one on the sizes.

    Raises:
      UserError: for models that do not go together, settings that leave nothing of a matrix, numbers that are not
        finite, and a folder that holds something or cannot be written.
    """
    check_new_folder(output)
    return carry_out(make_plan(config), output)


def compress_or_find(config: CompressConfig, output: epath.PathLike) -> str:
    """`compress`, or the last of its lines where the same config has left its folder already.

    Raises:
      UserError: as `compress`, and for a folder that another config has left, or that is of models that are others now.
    """
    file = epath.Path(output) / COMPRESSED
    if not file.exists():
        return compress(config, output).rpartition("\n")[2]  # "" in other processes than 0
    found = json.loads(file.read_text())
    if found["config"] != to_dict(config):
        raise UserError(f"{output} was compressed in another way; remove it, or choose another folder.")
    plan = make_plan(config)
    if [found[name]["fingerprint"] for name in ("model", "base")] != [plan.model.fingerprint, plan.base.fingerprint]:
        raise UserError(f"{output} is of models that are others by now; remove it, or choose another folder.")
    return found["result"]


def carry_out(plan: Plan, output: epath.PathLike) -> str:
    """See `compress`."""
    check_new_folder(output)
    if jax.process_index():
        for planned in plan.tensors:  # takes part in reading what is split over processes
            plan.model.read(planned.tensor)
        return ""
    with new_folder(output) as folder:
        figures, size = _write(plan, folder)
        copy_companions(plan.model.folder, folder)
        note = write_template(plan.model, folder)
        line = f"{output}: {_summary(plan, figures, size)}{note}"
        write_json(folder / COMPRESSED, _manifest(plan, figures, size, line))
    return "\n".join([*table(figures), line])


def _write(plan: Plan, folder: epath.Path) -> tuple[list[Figures], int]:
    """Writes the files, each where there is anything for it; figures on its tensors, and the bytes of all files."""
    figures: list[Figures] = []
    size = 0
    with tqdm(total=len(plan.tensors), desc="compressing", unit="tensor", disable=None) as bar:
        for file, tensors in itertools.groupby(plan.tensors, key=lambda planned: planned.file):
            arrays: Arrays = {}
            for planned in tensors:
                stored = _stored(plan, planned)
                if stored is not None:
                    arrays |= stored[0]
                    figures.append(stored[1])
                bar.update()
            if arrays:
                entries = {name: (array.dtype, array.shape) for name, array in arrays.items()}
                tensorfiles.write(folder / file, entries, arrays.__getitem__)
                size += (folder / file).stat().length
    return figures, size


def _stored(plan: Plan, planned: Planned) -> tuple[Arrays, Figures] | None:
    """What is written of a tensor, and figures on it; None where the base's, in the model's dtype, is the same, or
    a matrix differs by no more than rounding.

    Raises:
      UserError: for numbers that are not finite, and changes too large to be decomposed.
    """
    tensor, file, groups = planned
    tuned, base = _read(plan.model, tensor), _read(plan.base, tensor)
    if np.array_equal(tuned.astype(plan.dtype), base.astype(plan.dtype)):
        return None
    if not groups:
        array = tuned.astype(plan.dtype)
        return {tensor.name: array}, Figures(tensor, file, (), array.nbytes)
    change = tuned.astype(np.float32) - base.astype(np.float32)
    factors = decompose(change)
    if not np.isfinite(factors.values).all():
        raise UserError(
            f"the singular values of what changed of {tensor.name} leave the range of float32; leave the tensor out of "
            "config.targets."
        )
    groups = cut(groups, rank(factors, tuned, base))
    if not groups:
        return None
    coded = encode(factors, groups, plan.config.group_size, plan.config.refine)
    arrays = {f"{tensor.name}.{name}": array for name, array in coded.arrays.items()}
    size = sum(array.nbytes for array in arrays.values())
    missed = change - product(decode(coded))
    dropped = factors.values[len(coded.singular_values) :]
    return arrays, Figures(tensor, file, groups, size, *map(_squares, (change, missed, dropped)))


def _read(source: Source, tensor: Tensor) -> np.ndarray:
    array = np.asarray(source.read(tensor))
    if not np.isfinite(array.astype(np.float32)).all():
        raise UserError(f"{source.path}: {tensor.name} holds numbers that are not finite; restore it.")
    return array


def _squares(array: np.ndarray) -> float:
    return float(np.sum(np.square(array, dtype=np.float64)))


def _summary(plan: Plan, figures: list[Figures], size: int) -> str:
    coded = [one for one in figures if one.groups]
    dense = _dense(plan)
    if not figures:
        return "nothing differs from the base, so nothing is stored"
    parts = [f"{len(coded)} matrices compressed", f"{len(figures) - len(coded)} tensors as they are"]
    if coded:
        error, _, bits = shares(coded)
        parts[0] += f" to {bits:.3g} bits a weight, missing {error:.1%} of their changes"
    parts.append(f"{size:,} bytes, 1/{dense / size:.3g} of the model's {dense:,}")
    return "; ".join(parts)


def _dense(plan: Plan) -> int:
    """Bytes of the model, and of its change, stored in the model's dtype."""
    return sum(planned.tensor.size for planned in plan.tensors) * plan.dtype.itemsize


def _manifest(plan: Plan, figures: list[Figures], size: int, line: str) -> dict[str, Any]:
    model, base = plan.model, plan.base
    built_in = model.template in (*BUILT_IN, NO_TEMPLATE, "auto")
    coded = sum(one.size for one in figures if one.groups)
    plain = sum(one.size for one in figures if not one.groups)
    versions = {"jaxsft": __version__, "jax": jax.__version__, "numpy": np.__version__}
    return {
        "kind": KIND,
        "base": {"name": base.path, "fingerprint": base.fingerprint},
        "model": {"path": model.path, "fingerprint": model.fingerprint},
        "architecture": model.arch.to_hf(plan.dtype.name),
        "dtype": plan.dtype.name,
        "template": model.template if built_in else "auto",
        "condition": model.condition,
        "config": to_dict(plan.config),
        "bytes": {
            "coded": coded,
            "plain": plain,
            "headers": size - coded - plain,
            "files": size,
            "dense": _dense(plan),
        },
        "tensors": {one.tensor.name: _record(one) for one in figures},
        "versions": versions | {"python": platform.python_version()},
        "result": line,
    }


def _record(one: Figures) -> dict[str, Any]:
    record = {"file": one.file, "groups": [list(group) for group in one.groups], "bytes": one.size}
    if not one.groups:
        return record
    error, energy, bits = shares([one])
    return record | {"error": error, "energy": energy, "bits": bits, "change": math.sqrt(one.change)}
