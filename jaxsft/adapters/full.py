"""Full fine-tuning: every parameter is trained, less those that patterns freeze."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.adapters.method import Base, Parts, Tree
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture


@dataclasses.dataclass(frozen=True)
class Full(Base):
    """The method. A wholly frozen array leaves the gradient, the optimizer and the checkpoint; where patterns freeze
    some layers of a stack, the stack is trained and those rows' updates are masked.

    Attributes:
      arch: the model, which gives arrays their logical paths.
      freeze: logical-path patterns of parameters that are not trained.
    """

    arch: Architecture
    freeze: tuple[str, ...] = ()

    name = "full"
    trains_base = True

    @property
    def patterns(self) -> tuple[str, tuple[str, ...]]:
        """What is not trained."""
        return "config.optimizer.freeze", self.freeze

    def split(self, base: Tree, key: jax.Array) -> Parts:
        """Trained parameters in float32; frozen ones as they are."""
        del key
        params, frozen = self._partition(base)
        return Parts(jax.tree.map(lambda p: p.astype(jnp.float32), params), frozen, {})

    def axes(self, base_axes: Tree) -> Parts:
        """Those of the base, divided likewise."""
        return Parts(*self._partition(base_axes), {})

    def compose(self, parts: Parts, probes: Tree) -> tuple[Tree, None]:
        """The model is its parts put together; no adapters."""
        del probes
        return self.merge(parts), None

    def merge(self, parts: Parts) -> Tree:
        """Trained and frozen parameters in one tree."""
        tree: dict = {}
        for part in (parts.frozen, parts.params):
            for path, leaf in layout.leaves(part):
                layout.put(tree, path, leaf)
        return tree

    def update_mask(self, params: Tree) -> Tree | None:
        """Zero for the frozen rows of a stack."""
        masks = layout.map_leaves(
            lambda path, leaf: (
                ~self._frozen(path).reshape(-1, *[1] * (leaf.ndim - 1)) if path[0] == "stacks" else np.True_
            ),
            params,
        )
        return None if all(np.all(m) for m in jax.tree.leaves(masks)) else masks

    def _frozen(self, path: tuple[str, ...]) -> np.ndarray:
        return layout.rows(self.arch, path, self.freeze)

    def _partition(self, tree: Tree) -> tuple[Tree, Tree]:
        trained: dict = {}
        frozen: dict = {}
        for path, leaf in layout.leaves(tree):
            layout.put(frozen if self._frozen(path).all() else trained, path, leaf)
        return trained, frozen
