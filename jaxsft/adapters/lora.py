"""LoRA: y = x W + s (x A) B with a frozen W, A [in, r], B [r, out], and s = alpha / r.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), equation 3; rsLoRA's
s = alpha / sqrt(r): Kalajdzievski 2023 (arXiv:2312.03732). A is uniform in +-1/sqrt(in) and B zero, as PEFT starts
them, so a fresh adapter is the base bit for bit.
"""

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.adapters.method import Base, Parts, Tree
from jaxsft.config import LoRAConfig
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.projection import Aux, Context, dense, project


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoRANode:
    """One linear map's adapter: lora_a [in, r], lora_b [r, out] (stacked: a leading layer axis)."""

    lora_a: jax.Array
    lora_b: jax.Array
    scale: float = dataclasses.field(metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})

    def project(self, x: jax.Array, kernel: Any, ctx: Context) -> tuple[jax.Array, Aux]:
        """The base's product plus the low-rank update, in the dtype of the base's product."""
        y, _ = project(x, kernel, None, ctx)
        if jnp.issubdtype(x.dtype, jnp.integer):
            inner = jnp.take(self.lora_a, x, axis=0).astype(y.dtype)
        else:
            inner = _dropout(x, self.dropout, ctx) @ self.lora_a.astype(y.dtype)
        return y + (inner @ self.lora_b.astype(y.dtype)) * jnp.asarray(self.scale, y.dtype), {}


def _dropout(x: jax.Array, rate: float, ctx: Context) -> jax.Array:
    if not ctx.train or rate == 0.0:
        return x
    keep = jax.random.bernoulli(ctx.key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


@dataclasses.dataclass(frozen=True)
class LoRA(Base):
    """The method: trained are `lora_a` and `lora_b` of every targeted linear map, frozen is the base."""

    config: LoRAConfig
    arch: Architecture
    name = "lora"

    @property
    def patterns(self) -> tuple[str, tuple[str, ...]]:
        """What gets an adapter."""
        return "config.adapter.lora.targets", self.config.targets

    @property
    def scale(self) -> float:
        """s of the equation."""
        rank = self.config.rank
        return self.config.alpha / (rank**0.5 if self.config.rslora else rank)

    def split(self, base: Tree, key: jax.Array) -> Parts:
        """Fresh adapters over `base`."""

        def init(path: tuple[str, ...], kernel: Any) -> dict[str, jax.Array]:
            *lead, fan_in, fan_out = kernel.shape
            bound = fan_in**-0.5
            folded = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
            a = jax.random.uniform(folded, (*lead, fan_in, self.config.rank), jnp.float32, -bound, bound)
            return {"lora_a": a, "lora_b": jnp.zeros((*lead, self.config.rank, fan_out), jnp.float32)}

        return Parts(self._map(init, base), {"base": base}, {})

    def axes(self, base_axes: Tree) -> Parts:
        """A is split like W's input side, B like its output side."""
        split = lambda _, axes: {"lora_a": (*axes[:-1], "rank"), "lora_b": (*axes[:-2], "rank", axes[-1])}
        return Parts(self._map(split, base_axes), {"base": base_axes}, {})

    def compose(self, parts: Parts, probes: Tree) -> tuple[Tree, Tree]:
        """The base, and a node for every targeted map."""
        del probes
        node = lambda p: LoRANode(p["lora_a"], p["lora_b"], self.scale, self.config.dropout)
        return parts.frozen["base"], jax.tree.map(node, parts.params, is_leaf=is_lora)

    def merge(self, parts: Parts) -> Tree:
        """W + s A B, computed in at least float32 and rounded once to W's dtype."""

        def add(path: tuple[str, ...], kernel: Any) -> jax.Array:
            adapter = layout.get(parts.params, path[:-1])
            if adapter is None:
                return kernel
            wide = jnp.promote_types(kernel.dtype, jnp.float32)
            with jax.default_matmul_precision("highest"):
                delta = adapter["lora_a"].astype(wide) @ adapter["lora_b"].astype(wide)
            return (dense(kernel, wide) + self.scale * delta).astype(kernel.dtype)

        return layout.map_leaves(add, parts.frozen["base"])

    def update_mask(self, params: Tree) -> Tree | None:
        """Layers of a stack that no pattern targets keep their zero adapter."""
        rows = lambda path, leaf: self._rows(path[:-1]).reshape(-1, *[1] * (leaf.ndim - 1))
        masks = layout.map_leaves(lambda p, leaf: rows(p, leaf) if p[0] == "stacks" else np.True_, params)
        return None if all(np.all(m) for m in jax.tree.leaves(masks)) else masks

    def _rows(self, module: tuple[str, ...]) -> np.ndarray:
        """bool [n]: which rows of a stacked module, or (n = 1) whether an unstacked one, the patterns target."""
        return layout.rows(self.arch, module, self.config.targets)

    def _map(self, function: Any, tree: Tree) -> Tree:
        """A tree with `function(path, kernel)` at every targeted linear map."""
        out: dict = {}
        for path, leaf in layout.leaves(tree):
            if path[-1] in ("kernel", "embedding") and self._rows(path[:-1]).any():
                layout.put(out, path[:-1], function(path[:-1], leaf))
        return out


def is_lora(node: Any) -> bool:
    """Whether a node of a parameter tree is one linear map's adapter."""
    return isinstance(node, dict) and "lora_a" in node
