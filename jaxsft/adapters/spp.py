"""SPP: y = x W + s b * (x (W * Rep(A))), with a frozen, pruned W [in, out], A [r, in] and b [out].

Lu et al. 2024, "SPP: Sparsity-Preserved Parameter-Efficient Fine-Tuning for Large Language Models" (arXiv:2405.16057).
Rep(A)[:, o] = A[floor(o r / out)]: each row of A serves out / r outputs that lie together. Merged,

    W' = W * (1 + s Rep(A) b)

is zero wherever W is. A is uniform in +-1/sqrt(in) (Kaiming with a = sqrt(5)) and b zero, so a fresh adapter is the
base bit for bit.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxsft.adapters.adapter import Adapter, Arrays
from jaxsft.adapters.lora import dropout
from jaxsft.config import SPPConfig
from jaxsft.errors import UserError
from jaxsft.models.architecture import Architecture
from jaxsft.models.projection import Aux, Context, dense, project


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SPPNode:
    """One linear map's adapter: spp_a [r, in], spp_b [out] (stacked: a leading layer axis)."""

    spp_a: jax.Array
    spp_b: jax.Array
    scale: float = dataclasses.field(metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})

    def project(self, x: jax.Array, kernel: Any, ctx: Context) -> tuple[jax.Array, Aux]:
        """The base's product plus the update, in the dtype of the base's product."""
        y, _ = project(x, kernel, None, ctx)
        a = self.spp_a.astype(y.dtype)
        if jnp.issubdtype(x.dtype, jnp.integer):
            rows = y.reshape(*y.shape[:-1], a.shape[0], -1)
            weighed = (rows * jnp.take(a.T, x, axis=0)[..., None]).reshape(y.shape)
        else:
            weighed = weighed_product(dropout(x, self.dropout, ctx), kernel, self.spp_a, y.dtype)
        return y + weighed * (self.scale * self.spp_b).astype(y.dtype), {}


def weighed_product(x: jax.Array, kernel: Any, a: jax.Array, out_dtype: Any) -> jax.Array:
    """x (W * Rep(A)), block of outputs by block.

    Neither Rep(A) nor an input for each of its rows is kept for the backward pass. The kernel or the input is
    multiplied with A, whichever is the smaller product.

    Args:
      x: [..., in].
      kernel: [in, out], plain or quantised.
      a: [r, in]; r divides `out`.
      out_dtype: in which the product is accumulated and returned.

    Returns:
      [..., out].
    """

    @jax.checkpoint
    def blocks(x: jax.Array, kernel: Any, a: jax.Array) -> jax.Array:
        cut = dense(kernel, x.dtype).reshape(x.shape[-1], a.shape[0], -1)
        return jnp.einsum("...i,ki,iko->...ko", x, a.astype(x.dtype), cut, preferred_element_type=out_dtype)

    product = blocks(x, kernel, a)
    return product.reshape(*product.shape[:-2], -1)


@dataclasses.dataclass(frozen=True)
class SPP(Adapter):
    """The method: trained are `spp_a` and `spp_b` of every targeted linear map, frozen is the pruned base."""

    config: SPPConfig
    arch: Architecture
    name = "spp"

    def fresh(self, kernel: Any, key: jax.Array) -> Arrays:
        """A random, b zero.

        Raises:
          UserError: if r does not divide the outputs.
        """
        *lead, fan_in, fan_out = kernel.shape
        rank = self.config.rank
        if fan_out % rank:
            raise UserError(
                f"config.adapter.spp.rank is {rank}, which does not divide the {fan_out} outputs of a targeted map; "
                "choose a rank that divides the outputs of all of them, or narrow config.adapter.spp.targets."
            )
        bound = fan_in**-0.5
        a = jax.random.uniform(key, (*lead, rank, fan_in), jnp.float32, -bound, bound)
        return {"spp_a": a, "spp_b": jnp.zeros((*lead, fan_out), jnp.float32)}

    def fresh_axes(self, axes: tuple[str, ...]) -> Arrays:
        """A is split like W's input side, b like its output side."""
        return {"spp_a": (*axes[:-2], "rank", axes[-2]), "spp_b": (*axes[:-2], axes[-1])}

    def node(self, arrays: Arrays) -> SPPNode:
        """With the scale and the dropout."""
        return SPPNode(arrays["spp_a"], arrays["spp_b"], self.config.scale, self.config.dropout)

    def merged(self, kernel: Any, arrays: Arrays) -> jax.Array:
        """W * (1 + s Rep(A) b), computed in at least float32 and rounded once to W's dtype."""
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        a, b = (arrays[name].astype(wide) for name in ("spp_a", "spp_b"))
        repeated = jnp.repeat(jnp.swapaxes(a, -1, -2), b.shape[-1] // a.shape[-2], axis=-1)
        return (dense(kernel, wide) * (1 + self.config.scale * repeated * b[..., None, :])).astype(kernel.dtype)
