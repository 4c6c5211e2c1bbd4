"""The methods on trees in memory: each tensor of each layer on its own, as if it had been read from a file.

Thresholds, angles and sums are per tensor, so the rows of a stack of layers are merged one by one. To merge what lies
on disk, without holding a model, see `jaxsft.merging.merge`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxsft.config import MergeConfig
from jaxsft.errors import UserError
from jaxsft.merging.registry import METHODS, Leaf
from jaxsft.merging.settings import Settings
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture

Tree = Any


def merge_trees(arch: Architecture, config: MergeConfig, models: Sequence[Tree], base: Tree | None = None) -> Tree:
    """One tree of several.

    Args:
      arch: the model, which gives arrays their logical paths.
      config: of the method, weights, rules and settings; what it says of files is not read.
      models: trees of arrays of the same shapes; leaves that are no floats are those of the first.
      base: what all were tuned from, for the methods that need it.

    Returns:
      A tree like the first, each array rounded once to its dtype there.

    Raises:
      UserError: for a config that the method cannot do with.
    """
    if METHODS[config.method].statistics:
        raise UserError(
            f"the method {config.method!r} needs data; call `jaxsft.merging.{config.method}` on each array."
        )
    settings = Settings.of(config, len(models), base is not None, arch)
    merge = METHODS[config.method].run

    def one(name: str, arrays: Sequence[jax.Array], start: jax.Array | None) -> jax.Array:
        weights, density = settings.at(name)
        turned = name.endswith(".kernel")
        files = [array.T if turned else array for array in (*arrays, *([] if start is None else [start]))]
        leaf = Leaf(name, tuple(files[: len(arrays)]), None if start is None else files[-1], weights, density)
        merged = merge(leaf, config)
        return (merged.T if turned else merged).astype(arrays[0].dtype)

    def leaf(path: layout.Path, first: jax.Array) -> jax.Array:
        if not jnp.issubdtype(first.dtype, jnp.floating):
            return first
        arrays, start = [layout.get(tree, path) for tree in models], layout.get(base, path)
        names = layout.logical_paths(arch, path)
        if path[0] != "stacks":
            return one(names[0], arrays, start)
        row = lambda array, i: None if array is None else array[i]
        return jnp.stack([one(n, [row(a, i) for a in arrays], row(start, i)) for i, n in enumerate(names)])

    return layout.map_leaves(leaf, models[0])
