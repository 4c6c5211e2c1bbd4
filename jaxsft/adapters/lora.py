"""LoRA: y = x W + s (x A) B with a frozen W, A [in, r], B [r, out], and s = alpha / r.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), equation 3; rsLoRA's
s = alpha / sqrt(r): Kalajdzievski 2023 (arXiv:2312.03732). A is uniform in +-1/sqrt(in) and B zero, as PEFT starts
them, so a fresh adapter is the base bit for bit.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxsft.adapters.adapter import Adapter, Arrays
from jaxsft.config import LoRAConfig
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
            inner = dropout(x, self.dropout, ctx) @ self.lora_a.astype(y.dtype)
        return y + (inner @ self.lora_b.astype(y.dtype)) * jnp.asarray(self.scale, y.dtype), {}


def dropout(x: jax.Array, rate: float, ctx: Context) -> jax.Array:
    """Zeroes a share of the entries in training, and scales the others up."""
    if not ctx.train or rate == 0.0:
        return x
    keep = jax.random.bernoulli(ctx.key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


@dataclasses.dataclass(frozen=True)
class LoRA(Adapter):
    """The method: trained are `lora_a` and `lora_b` of every targeted linear map, frozen is the base."""

    config: LoRAConfig
    arch: Architecture
    name = "lora"
    ties = True

    @property
    def scale(self) -> float:
        """s of the equation."""
        rank = self.config.rank
        return self.config.alpha / (rank**0.5 if self.config.rslora else rank)

    def fresh(self, kernel: Any, key: jax.Array) -> Arrays:
        """A random, B zero."""
        *lead, fan_in, fan_out = kernel.shape
        bound = fan_in**-0.5
        a = jax.random.uniform(key, (*lead, fan_in, self.config.rank), jnp.float32, -bound, bound)
        return {"lora_a": a, "lora_b": jnp.zeros((*lead, self.config.rank, fan_out), jnp.float32)}

    def fresh_axes(self, axes: tuple[str, ...]) -> Arrays:
        """A is split like W's input side, B like its output side."""
        return {"lora_a": (*axes[:-1], "rank"), "lora_b": (*axes[:-2], "rank", axes[-1])}

    def node(self, arrays: Arrays) -> LoRANode:
        """With the scale and the dropout."""
        return LoRANode(arrays["lora_a"], arrays["lora_b"], self.scale, self.config.dropout)

    def transposed(self, arrays: Arrays) -> LoRANode:
        """x (W + s A B)^T = x W^T + s (x B^T) A^T."""
        return LoRANode(arrays["lora_b"].T, arrays["lora_a"].T, self.scale)

    def merged(self, kernel: Any, arrays: Arrays) -> jax.Array:
        """W + s A B, computed in at least float32 and rounded once to W's dtype."""
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        with jax.default_matmul_precision("highest"):
            delta = arrays["lora_a"].astype(wide) @ arrays["lora_b"].astype(wide)
        return (dense(kernel, wide) + self.scale * delta).astype(kernel.dtype)
