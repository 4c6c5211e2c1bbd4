"""Models of one shape become one, a tensor at a time: what `scripts/merge.py` and the stage "merge" do.

No model is ever in memory: of every tensor of every layer the models' own are read, merged in float32, rounded once and
written. With several devices each tensor is split over them. The folder appears when it is whole, and in it is
`merge.json`: method, settings, sources with their fingerprints, versions, and what rounding lost.
"""

import contextlib
import json
import platform
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from jaxsft import __version__
from jaxsft.config import MergeConfig
from jaxsft.errors import UserError
from jaxsft.files import check_new_folder, new_folder, write_json
from jaxsft.merging.adapters import AdapterPlan, plan_adapters
from jaxsft.merging.ahead import ReadAhead
from jaxsft.merging.factors import ADAPTER_METHODS
from jaxsft.merging.linear import on_host, wide
from jaxsft.merging.plan import Plan, make_plan
from jaxsft.merging.registry import METHODS, Leaf
from jaxsft.merging.sources import Source
from jaxsft.merging.statistics import Statistics, measure
from jaxsft.models.checkpoint import CONFIG, copy_companions, write_tensors
from jaxsft.models.weights import Tensor
from jaxsft.training.export import write_template
from jaxsft.validation import to_dict

MANIFEST = "merge.json"


def merge(config: MergeConfig, output: epath.PathLike) -> str:
    """Merges the models that `config` names into a new folder.

    Every process calls it; process 0 writes.

    Args:
      config: validated.
      output: a new or empty folder, local or `gs://`.

    Returns:
      A line on the result, with what rounding lost.

    Raises:
      UserError: for models that do not go together, settings that do not fit them, numbers that are not finite, and a
        folder that holds something or cannot be written.
    """
    check_new_folder(output)
    return plan(config).carry_out(output)


def plan(config: MergeConfig) -> "Merge | AdapterPlan":
    """What `merge` will do: an object with `describe()`, lines on it, and `carry_out(output)`.

    Raises:
      UserError: for all that can be known before weights are read.
    """
    return plan_adapters(config) if config.method in ADAPTER_METHODS else Merge(make_plan(config))


class Merge:
    """A planned merge of models."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self.describe = plan.describe

    @property
    def fingerprints(self) -> list[str]:
        """Of the models and the base."""
        return [source.fingerprint for source in self._plan.sources]

    def carry_out(self, output: epath.PathLike) -> str:
        """See `merge`."""
        return _carry_out(self._plan, output)


def merge_or_find(config: MergeConfig, output: epath.PathLike) -> str:
    """`merge`, or its line where the same config has left its folder already: a stage that was broken off behind it.

    Raises:
      UserError: as `merge`, and for a folder that another config has left.
    """
    file = epath.Path(output) / MANIFEST
    if not file.exists():
        return merge(config, output)
    found = json.loads(file.read_text())
    if found["config"] != to_dict(config):
        raise UserError(f"{output} holds models merged in another way; remove it, or choose another folder.")
    held = [source["fingerprint"] for source in [*found["models"], *filter(None, [found["base"]])]]
    if held != plan(config).fingerprints:
        raise UserError(f"{output} was merged of models that are others by now; remove it, or choose another folder.")
    return found["result"]


def _carry_out(plan: Plan, output: epath.PathLike) -> str:
    check_new_folder(output)
    with working(plan) as work:
        return _write(plan, work, output)


@contextlib.contextmanager
def working(plan: Plan) -> Iterator["Work"]:
    """What merges the tensors of a plan, with the statistics that its method needs.

    Raises:
      UserError: see `jaxsft.merging.statistics.measure`.
    """
    kind, measured = METHODS[plan.config.method].statistics, []
    with contextlib.ExitStack() as held:
        if kind:
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="statistics-"))
            measured = measure(plan.config, kind, epath.Path(folder), plan.mesh)
        load = lambda tensor: [_load(source, tensor, plan.mesh) for source in plan.sources]
        ahead = held.enter_context(ReadAhead(plan.tensors, load, len(plan.sources), plan.arrays))
        yield Work(plan, measured, ahead)


def _write(plan: Plan, work: "Work", output: epath.PathLike) -> str:
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    if jax.process_index():
        for tensor in plan.tensors:  # takes part in what is split over processes
            work.produce(tensor)
        return ""
    with new_folder(output) as folder:
        entries = {name: (plan.dtype, tensor.shape) for name, tensor in tensors.items()}
        with tqdm(total=len(entries), desc=f"merging ({plan.config.method})", unit="tensor", disable=None) as bar:

            def produce(name: str) -> np.ndarray:
                bar.update()
                return work.produce(tensors[name])

            write_tensors(folder, entries, produce)
        copy_companions(plan.last.folder, folder)
        note = write_template(plan.last, folder)
        write_json(folder / CONFIG, plan.arch.to_hf(plan.dtype.name))
        line = f"{output}: {plan.config.method} of {len(plan.models)} models, {plan.dtype.name}; {work.loss}{note}"
        write_json(folder / MANIFEST, _manifest(plan, work, line))
    return line


class Work:
    """Merges tensor by tensor, and keeps count of what rounding loses."""

    def __init__(self, plan: Plan, measured: list[Statistics], ahead: ReadAhead):
        self._plan, self._measured, self._ahead = plan, measured, ahead
        self._lost = self._moved = 0.0  # squared norms, of the rounding error and of the update

    def produce(self, tensor: Tensor) -> np.ndarray:
        """The merged tensor on the host; called for each in the plan's order.

        Raises:
          UserError: for a source that holds numbers that are not finite, and a result that leaves the dtype's range.
        """
        merged, start = self._merged(tensor)
        rounded, lost, moved, finite = _round(merged, start, self._plan.dtype)
        del merged, start
        if not on_host(finite):
            raise UserError(
                f"{tensor.name} leaves the range of {self._plan.dtype.name} when it is merged; choose other weights, "
                "or set config.dtype to 'float32'."
            )
        self._lost += float(np.sum(on_host(lost), dtype=np.float64))
        self._moved += float(np.sum(on_host(moved), dtype=np.float64))
        return on_host(rounded)

    def _merged(self, tensor: Tensor) -> tuple[jax.Array, jax.Array]:
        """The merged tensor, wide, and what its update is from; the other models' are let go of."""
        plan = self._plan
        arrays = self._ahead.take()
        for source, finite in zip(plan.sources, on_host(_finite(tuple(arrays)))):
            if not finite:
                raise UserError(f"{source.path}: {tensor.name} holds numbers that are not finite; restore it.")
        weights, density = plan.settings.at(tensor.logical)
        models, base = tuple(arrays[: len(plan.models)]), None if plan.base is None else arrays[-1]
        statistics = [measured.read(tensor) for measured in self._measured]
        statistics = tuple(jnp.asarray(array) for array in statistics if array is not None)
        norms = tuple(measured.norm for measured in self._measured)
        leaf = Leaf(tensor.logical, models, base, weights, density, statistics, norms)
        merged = METHODS[plan.config.method].run(leaf, plan.config)
        return merged, models[0] if base is None else base

    @property
    def share(self) -> float:
        """The norm of the rounding error over that of the update, which is from the base, or from the first model."""
        return (self._lost / self._moved) ** 0.5 if self._moved else 0.0

    @property
    def loss(self) -> str:
        """A clause on the rounding error."""
        start = "base" if self._plan.base is not None else "first model"
        if not self._moved:
            return f"nothing differs from the {start}"
        hint = "; config.dtype='float32' keeps it" if self.share > 0.1 and self._plan.dtype != np.float32 else ""
        return f"the rounding error is {self.share:.2%} of the distance to the {start}{hint}"


def _load(source: Source, tensor: Tensor, mesh: Mesh) -> jax.Array:
    """A tensor on the devices, split along its first dimension that divides by their number."""
    ways = mesh.size
    if ways == 1:
        return jax.block_until_ready(jax.device_put(source.read(tensor), mesh.devices.item()))
    split = next((axis for axis, size in enumerate(tensor.shape) if size % ways == 0), None)
    spec = PartitionSpec() if split is None else PartitionSpec(*[None] * split, mesh.axis_names)
    if source.by_part:
        read = lambda index: source.read(tensor, index)
    else:
        whole = np.asarray(source.read(tensor))
        read = lambda index: whole[index]
    return jax.make_array_from_callback(tensor.shape, NamedSharding(mesh, spec), read)


@jax.jit
def _finite(arrays: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.stack([_all_finite(array) for array in arrays])


def _all_finite(x: jax.Array) -> jax.Array:
    """By sums of rows, which one number that is none spoils: on a CPU an eighth of the time of asking each number.

    They are scaled so that none of float32's numbers adds up beyond its range. A maximum would not do: XLA's may lose
    a NaN on CPUs.
    """
    return jnp.isfinite(jnp.sum(wide(x) * 2.0**-40, axis=-1)).all()


class _Rounded(NamedTuple):
    array: jax.Array
    lost: jax.Array
    moved: jax.Array
    finite: jax.Array


def _round(merged: jax.Array, start: jax.Array, dtype: Any) -> _Rounded:
    return _rounder(merged, start, dtype=dtype)


def _rounding(merged: jax.Array, start: jax.Array, dtype: Any) -> _Rounded:
    """The array rounded, and the squared norms, row by row, of the error and of the update."""
    rounded = merged.astype(dtype)
    squares = lambda x: jnp.sum(x**2, axis=-1)
    lost, moved = squares(wide(rounded) - merged), squares(merged - wide(start))
    return _Rounded(rounded, lost, moved, _all_finite(rounded))


_rounder = jax.jit(_rounding, static_argnames="dtype")


def _manifest(plan: Plan, work: Work, line: str) -> dict[str, Any]:
    name = lambda source: {"path": source.path, "fingerprint": source.fingerprint}
    versions = {"jaxsft": __version__, "jax": jax.__version__, "numpy": np.__version__}
    return {
        "kind": "merge",
        "method": plan.config.method,
        "models": [name(model) for model in plan.models],
        "base": None if plan.base is None else name(plan.base),
        "config": to_dict(plan.config),
        "dtype": plan.dtype.name,
        "tensors": len(plan.tensors),
        "rounding_error": work.share,
        "notes": plan.notes,
        "versions": versions | {"python": platform.python_version()},
        "result": line,
    }
