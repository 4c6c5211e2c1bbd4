"""`project`, the one function through which every linear map of the model goes.

A new adapter or a quantised base enters here and never edits a block of the decoder: a kernel that is not a plain array
offers `dequantize(dtype)` and `matmul(x, out_dtype)` (`jaxsft.models.quantized`), an adapter offers
`project(x, kernel, ctx)`.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxsft.sharding import constrain

Aux = dict[str, Any]  # what an adapter reports of one linear map: arrays, later stacked by the scan over layers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a linear map may know beyond its input.

    Attributes:
      key: a PRNG key folded with the step, the micro-batch and the layer, or None in evaluation.
      example_ids: int32 [B, T] or None (decoding), see `jaxsft.data.batch.Batch`.
      valid: bool [B, T] or None, True where a token is real.
      extras: the batch's extras (task types and the like).
      train: static; dropout and the like act only where it is True.
      name: static; the name of the linear map inside its layer, such as `attn.q_proj`.
      out_dtype: static; the dtype in which the product is accumulated and returned; None is that of x. The head asks
        for float32 logits of bfloat16 factors.
    """

    key: jax.Array | None = None
    example_ids: jax.Array | None = None
    valid: jax.Array | None = None
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)
    train: bool = dataclasses.field(default=False, metadata={"static": True})
    name: str = dataclasses.field(default="", metadata={"static": True})
    out_dtype: Any = dataclasses.field(default=None, metadata={"static": True})


class AdapterNode(Protocol):
    """An adapter as one linear map sees it: a pytree whose leaves have lost their leading layer axis."""

    def project(self, x: jax.Array, kernel: Any, ctx: Context) -> tuple[jax.Array, Aux]:
        """Returns the adapted product [..., out] and what the adapter reports."""
        ...


def dense(kernel: Any, dtype: jnp.dtype) -> jax.Array:
    """The kernel as a plain array of `dtype`, dequantised if it is stored quantised."""
    return kernel.dequantize(dtype) if hasattr(kernel, "dequantize") else kernel.astype(dtype)


def project(x: jax.Array, kernel: Any, adapter: AdapterNode | None, ctx: Context) -> tuple[jax.Array, Aux]:
    """One linear map, without bias.

    Args:
      x: [..., in] in the compute dtype, or integers [...] for an embedding table, whose rows are looked up.
      kernel: [in, out], an array of any float dtype (cast to that of `x`) or a quantised kernel.
      adapter: None or any adapter node.
      ctx: see `Context`.

    Returns:
      y [..., out] in `ctx.out_dtype` or the dtype of `x` (for integers: of the kernel), and the adapter's report ({}
      without one).
    """
    if adapter is not None:
        return adapter.project(x, kernel, ctx)
    if jnp.issubdtype(x.dtype, jnp.integer):
        table = kernel.dequantize(None) if hasattr(kernel, "dequantize") else kernel
        # gathered over its width like any weight, but not over the vocabulary: each device looks up the rows it has
        return jnp.take(constrain(table, "vocab", None), x, axis=0), {}
    if hasattr(kernel, "matmul"):
        return kernel.matmul(x, ctx.out_dtype), {}
    return jnp.matmul(x, dense(kernel, x.dtype), preferred_element_type=ctx.out_dtype), {}
