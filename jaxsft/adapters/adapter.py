"""What adapters have in common: small arrays at the linear maps that patterns target, beside a frozen base.

A kind of adapter says what it holds of one linear map, how these arrays are split over a mesh, which node the map then
sees, and, where it can be merged, the kernel that computes the same.
"""

import zlib
from typing import Any

import jax
import numpy as np

from jaxsft.adapters.method import Base, Parts, Tree
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.layout import Path
from jaxsft.models.projection import AdapterNode
from jaxsft.models.quantized import dequantize_params as plain

Arrays = dict[str, Any]  # what an adapter holds of one linear map, by name; stacked maps have a leading layer axis


class Adapter(Base):
    """A method that trains an adapter. Its `params` hold `Arrays` at the path of every targeted linear map.

    Attributes:
      name: the kind, as in `config.adapter.kind`; its settings are in the field of that name.
      config: the settings; their `targets` are logical-path patterns.
      arch: the model.
    """

    name: str
    config: Any
    arch: Architecture

    def fresh(self, kernel: Any, key: jax.Array) -> Arrays:
        """New arrays for one linear map, with which it computes what the base does.

        Args:
          kernel: [in, out] or [layers, in, out]; only its shape is used. The embedding is a map from V to D.
          key: of this map.
        """
        raise NotImplementedError

    def fresh_axes(self, axes: tuple[str, ...]) -> Arrays:
        """Their logical axes, from those of the kernel."""
        raise NotImplementedError

    def node(self, arrays: Arrays) -> AdapterNode:
        """What the linear map's `project` is called with."""
        raise NotImplementedError

    def transposed(self, arrays: Arrays) -> AdapterNode:
        """What the head's `project` is called with where the embedding, of which these arrays are, is the head too."""
        raise NotImplementedError

    def merged(self, kernel: Any, arrays: Arrays) -> jax.Array:
        """The kernel that computes the same without adapter, in the dtype of `kernel`.

        Raises:
          UserError: if there is none.
        """
        raise NotImplementedError

    @property
    def patterns(self) -> tuple[str, tuple[str, ...]]:
        """What gets an adapter."""
        return f"config.adapter.{self.name}.targets", self.config.targets

    def split(self, base: Tree, key: jax.Array) -> Parts:
        """Fresh adapters over `base`."""
        folded = lambda path: jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        return Parts(self.at_targets(lambda path, kernel: self.fresh(kernel, folded(path)), base), {"base": base}, {})

    def axes(self, base_axes: Tree) -> Parts:
        """Those of the adapters follow the base's."""
        return Parts(self.at_targets(lambda _, axes: self.fresh_axes(axes), base_axes), {"base": base_axes}, {})

    def compose(self, parts: Parts, probes: Tree) -> tuple[Tree, Tree]:
        """The base, and a node for every targeted map."""
        del probes
        base = parts.frozen["base"]
        nodes = self.at_targets(lambda path, _: self.node(layout.get(parts.params, path)), base)
        if self.arch.tied and "embed" in nodes:
            nodes["head"] = self.transposed(parts.params["embed"])
        return base, nodes

    def merge(self, parts: Parts) -> Tree:
        """The base, its targeted kernels replaced, and quantised ones dequantised."""

        def replace(path: Path, kernel: Any) -> Any:
            arrays = layout.get(parts.params, path[:-1]) if path[-1] in ("kernel", "embedding") else None
            return plain(kernel) if arrays is None else self.merged(kernel, arrays)

        return layout.map_leaves(replace, parts.frozen["base"])

    def update_mask(self, params: Tree) -> Tree | None:
        """Layers of a stack that no pattern targets keep their fresh adapter."""
        rows = lambda path, leaf: self.rows(path[:-1]).reshape(-1, *[1] * (leaf.ndim - 1))
        masks = layout.map_leaves(lambda p, leaf: rows(p, leaf) if p[0] == "stacks" else np.True_, params)
        return None if all(np.all(m) for m in jax.tree.leaves(masks)) else masks

    def rows(self, module: Path) -> np.ndarray:
        """bool [n]: which rows of a stacked module, or (n = 1) whether an unstacked one, the patterns target."""
        return layout.rows(self.arch, module, self.config.targets)

    def at_targets(self, function: Any, tree: Tree) -> Tree:
        """A tree with `function(module path, leaf)` at every targeted linear map, of a tree like the base's."""
        out: dict = {}
        for path, leaf in layout.leaves(tree):
            if path[-1] in ("kernel", "embedding") and self.rows(path[:-1]).any():
                layout.put(out, path[:-1], function(path[:-1], leaf))
        return out
