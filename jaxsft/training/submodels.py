"""K sub-models trained at once over one frozen base: the step, mapped over a leading axis of state and batch.

The base is not mapped, so a matrix product of the base serves the rows of all sub-models at once. Everything else is a
sub-model's own: parameters, moments, key, denominators, clipping, metrics, and how long it runs. On a mesh, sub-models
are split over the axis `submodel`, along which nothing is summed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsft.sharding import SUBMODEL, batch_sharding
from jaxsft.training.state import TrainState

Tree = Any
Update = Callable[[TrainState, Tree, Tree], tuple[TrainState, Any]]


def together(update: Update) -> Update:
    """Maps a step over sub-models.

    One that has done all steps of its horizon is left bit for bit as it is, whatever the batch holds.

    Args:
      update: (state, frozen, batch) -> (state, metrics) of one model.

    Returns:
      The same of several, frozen shared: states and batches with a leading axis, metrics [K].
    """

    def member(state: TrainState, frozen: Tree, batch: Tree) -> tuple[TrainState, Any]:
        after, metrics = update(state, frozen, batch)
        running = state.step < state.horizon.steps
        return jax.tree.map(lambda new, old: jnp.where(running, new, old), after, state), metrics

    return jax.vmap(member, in_axes=(0, None, 0), spmd_axis_name=SUBMODEL)


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of NumPy arrays as one with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def repeat(tree: Tree, count: int) -> Tree:
    """The tree so many times over, on a leading axis."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), tree)


def take(tree: Tree, index: int) -> Tree:
    """One sub-model's part of a tree."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def shardings(tree: Tree) -> Tree:
    """Of a stacked tree, from those of one sub-model's."""
    is_sharding = lambda leaf: isinstance(leaf, NamedSharding)
    prepend = lambda s: NamedSharding(s.mesh, PartitionSpec(SUBMODEL, *s.spec))
    return jax.tree.map(prepend, tree, is_leaf=is_sharding)


def shapes(tree: Tree, count: int) -> Tree:
    """ShapeDtypeStructs of a stacked tree, with shardings, from those of one sub-model's."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((count, *s.shape), s.dtype, sharding=shardings(s.sharding)), tree
    )


def on_devices(tree: Tree, mesh: Mesh) -> Tree:
    """A stacked batch of NumPy arrays, which every process holds whole, split by sub-models and rows."""
    sharding = shardings(batch_sharding(mesh))
    place = lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda index: x[index])
    return jax.tree.map(place, tree)
