"""Device meshes, and one rule table from logical axis names to mesh axes.

Parameters and activations name their axes (`embed`, `heads`, `batch`); `RULES` says which mesh axes each is split over.
Meshes have four axes: `submodel` (models that are trained at once and share nothing but a frozen base), `replica` (data
parallelism with replicated parameters, across slices), `fsdp` (data parallelism with sharded parameters) and `tensor`.
Axis types are Auto: XLA's partitioner propagates, and the boundaries (state, batch, the constraints below) are
explicit.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxsft.config import MeshConfig
from jaxsft.errors import UserError

SUBMODEL = "submodel"
AXES = (SUBMODEL, "replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")

# Logical axis -> mesh axes. Each mesh axis is used once per array: the first logical axis that names it wins.
RULES: dict[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,  # rows of a batch
    "length": (),  # positions in a row
    "act_embed": (),  # the residual stream's width
    "layers": (),  # the scanned axis of a stack
    "embed": ("fsdp",),  # a weight's residual-stream side
    "heads": ("tensor",),  # query heads (times head size in weights)
    "kv_heads": ("tensor",),  # key and value heads
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "rank": (),  # the inner axis of low-rank adapters
    "norm": (),  # scales and other small vectors
    "tuned": ("fsdp", "tensor"),  # single weights of a matrix, in a list
}
# A quantised kernel's blocks are split like the side of the kernel that they cut up, where they divide; where not, its
# columns are split over those mesh axes too.
SIDES = ("embed", "heads", "kv_heads", "mlp")
RULES |= {f"{side}_blocks": RULES[side] for side in SIDES}
RULES |= {f"{side}_columns": tuple(dict.fromkeys((*RULES[side], "tensor", "fsdp"))) for side in SIDES}
# Split as far as it divides, whole where not: vocabularies are odd numbers after tokens were added,
# and lists of single weights may be short.
SOFT = ("vocab", "tuned", *(f"{side}_{part}" for side in SIDES for part in ("blocks", "columns")))
FREE = "free"  # for `constrain`: the partitioner chooses


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices; where there are several slices, `submodel` crosses them if it can, and else `replica`.

    Raises:
      UserError: if the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [config.submodel, config.replica, config.fsdp, config.tensor]
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise UserError(
            f"config.mesh is {dict(zip(AXES, sizes))}; sizes are positive, and at most one is -1 (what is left)."
        )
    if -1 in sizes:
        known = int(np.prod([s for s in sizes if s != -1]))
        if len(devices) % known:
            raise UserError(
                f"config.mesh is {dict(zip(AXES, sizes))}: {known} does not divide the {len(devices)} devices; "
                "choose sizes whose product does."
            )
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"config.mesh is {dict(zip(AXES, sizes))}, {int(np.prod(sizes))} devices in all, but there are "
            f"{len(devices)}; "
            "set one size to -1 to take what is left."
        )
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices > 1:
        across = next((axis for axis in (0, 1) if sizes[axis] % slices == 0), None)
        if across is None:
            raise UserError(
                f"config.mesh.replica is {sizes[1]}; with {slices} slices it must be a multiple of {slices}."
            )
        outer = [slices if axis == across else 1 for axis in range(len(sizes))]
        inner = [size // ways for size, ways in zip(sizes, outer)]
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    else:  # not jax.make_mesh, which refuses sizes that split an axis of the chips' torus
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Any, name: str = "an array") -> PartitionSpec:
    """The partition of one array.

    Args:
      axes: a logical name, or None, per dimension.
      shape: its shape.
      mesh: a mesh or an abstract mesh.
      name: what the array is called in the error.

    Raises:
      UserError: if a dimension does not divide by its mesh axes (axes in `SOFT` are split less instead).
    """
    sizes, used, parts = dict(zip(mesh.axis_names, mesh.axis_sizes)), set(), []
    for axis, dim in zip(axes, shape, strict=True):
        if axis is not None and axis not in RULES:
            raise ValueError(f"unknown logical axis {axis!r} of {name}")
        chosen = [] if axis is None else [m for m in RULES[axis] if sizes.get(m, 1) > 1 and m not in used]
        while dim % (ways := int(np.prod([sizes[m] for m in chosen], initial=1))):
            if axis not in SOFT:
                raise UserError(
                    f"{name} has {axis}={dim}, which does not divide by the mesh's {'*'.join(chosen)}={ways}; "
                    f"choose a mesh whose {' and '.join(chosen)} divide it."
                )
            chosen.pop()
        used.update(chosen)
        parts.append(None if not chosen else chosen[0] if len(chosen) == 1 else tuple(chosen))
    return PartitionSpec(*parts)


def tree_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """NamedShardings for a tree of arrays (or ShapeDtypeStructs), from the tree of their logical axes.

    A quantised kernel, whose axes are those of the plain one, gives those of its own arrays (`array_axes`).
    """
    is_axes = lambda x: isinstance(x, tuple)

    def place(path: Any, axes: Any, shape: Any) -> Any:
        if hasattr(shape, "array_axes"):
            inner = lambda rest, axes, shape: place((*path, *rest), axes, shape)
            return jax.tree_util.tree_map_with_path(inner, shape.array_axes(axes), shape, is_leaf=is_axes)
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, spec(axes, shape.shape, mesh, name))

    return jax.tree_util.tree_map_with_path(place, axes, shapes, is_leaf=is_axes)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to its logical axes; without a mesh (`jax.set_mesh`) it is the identity.

    A dimension that does not divide is left to the partitioner: an activation's layout is a hint, not a contract. So is
    one whose axis is `FREE`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes))
    fits = lambda a, d: a != FREE and d % int(np.prod([sizes.get(m, 1) for m in RULES[a]], initial=1)) == 0
    kept = [a if a is not None and fits(a, d) else None for a, d in zip(axes, x.shape, strict=True)]
    parts = [PartitionSpec.UNCONSTRAINED if k is None and a is not None else p
             for a, k, p in zip(axes, kept, spec(kept, x.shape, mesh))]  # fmt: skip
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all data-parallel devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def process_share(mesh: Mesh, process: int) -> tuple[tuple[int, ...], int]:
    """Which of the equal shares of a batch's rows a process's devices hold, and how many shares there are.

    They need not follow each other: a mesh is laid out for the chips' network, in which a host's chips are a block.
    """
    shards = data_shards(mesh)
    own = np.vectorize(lambda device: device.process_index == process)(mesh.devices).any(axis=(0, -1))
    return tuple(np.arange(shards).reshape(own.shape)[own].tolist()), shards


def data_shards(mesh: Mesh) -> int:
    """Devices over which the rows of a batch are split."""
    return int(np.prod([dict(zip(mesh.axis_names, mesh.axis_sizes)).get(a, 1) for a in BATCH_AXES]))
