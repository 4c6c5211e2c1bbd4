"""Quantised kernels of a frozen base: NF4 (QLoRA) and int8, dequantised inside the layer that uses them.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs" (arXiv:2305.14314), equations 1 and 6 and
appendix E. Weights are cut into blocks of 64 along the input side, each stored as codes times the block's largest
magnitude:

    s_b = max |W_b|,    q = argmin_k |W / s_b - code_k|,    W^ = s_b code_q

with the 16 codes of `NF4_CODES`, or the whole numbers -127..127 over 127 for int8. With double quantisation the scales
are themselves 8 bit: less their mean over the matrix, in groups of 256 blocks with one float32 scale each; NF4 then
takes 4 + 8/64 + 32/(64 * 256) = 4.127 bits a weight.

Own code rather than qwix (0.1.8): its NF4 keeps a code in a uint4 of its own and the scales in floats (no double
quantisation), and refuses a dimension that its blocks do not divide. Its matrix product leaves the backward pass to
autodiff, which stores the dequantised matrix of every layer, the very memory that quantising is to save.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

BLOCK = 64  # weights that share a scale
GROUP = 256  # blocks whose scales share a scale
# The 16 values of NF4, as bitsandbytes has them.
NF4_CODES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
INT8_MAX = 127
KINDS = ("nf4", "int8")

Axes = tuple[str, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedKernel:
    """A kernel [..., in, out] stored quantised; leading axes (layers) are those of all its arrays.

    The input side has `blocks = ceil(in / 64)` blocks of one even size, 64 where that divides it, and is padded with
    zeros to fill them: 172 inputs make 3 blocks of 58.

    Attributes:
      codes: NF4: uint8 [..., blocks, size / 2, out]; the first half of a block is in the low four bits, the second in
        the high ones. int8: int8 [..., blocks, size, out].
      scales: float32 [..., blocks, out], or int8 with double quantisation.
      groups: float32 [..., blocks, ceil(out / 256)], the scales' scales over 127, or None.
      mean: float32 [...], what was subtracted from the scales, or None.
      rows: in.
      dtype: of the plain kernel that this stands for.
    """

    codes: Any
    scales: Any
    groups: Any
    mean: Any
    rows: int = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the plain kernel."""
        return (*self.codes.shape[:-3], self.rows, self.codes.shape[-1])

    @property
    def ndim(self) -> int:
        """Of the plain kernel."""
        return self.codes.ndim - 1

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """Of `KINDS`."""
        return "nf4" if self.codes.dtype == jnp.uint8 else "int8"

    @property
    def block_size(self) -> int:
        """Weights of a block."""
        return self.codes.shape[-2] * (2 if self.kind == "nf4" else 1)

    def dequantize(self, dtype: Any) -> jax.Array:
        """The plain kernel [..., in, out]; multiplied in at least float32 and rounded once to `dtype` (None: its own).

        A matrix product of a stored kernel is `matmul`, which keeps this out of the backward pass's memory.
        """
        dtype = jnp.dtype(self.dtype if dtype is None else dtype)
        wide = jnp.promote_types(dtype, jnp.float32)
        if self.kind == "nf4":
            halves = (self.codes & 15, self.codes >> 4)
            values = jnp.concatenate([_look_up(half, wide) for half in halves], axis=-2)
        else:
            values = self.codes.astype(wide) * (1 / INT8_MAX)
        values = values * self.block_scales(wide)[..., None, :]
        flat = values.astype(dtype).reshape(*values.shape[:-3], -1, values.shape[-1])
        return flat[..., : self.rows, :]

    def block_scales(self, dtype: Any = jnp.float32) -> jax.Array:
        """What the blocks' codes are multiplied by, [..., blocks, out]."""
        scales = self.scales.astype(dtype)
        if self.groups is None:
            return scales
        groups = jnp.repeat(self.groups.astype(dtype), GROUP, axis=-1)
        return scales * groups[..., : scales.shape[-1]] + self.mean.astype(dtype)[..., None, None]

    def matmul(self, x: jax.Array, out_dtype: Any = None) -> jax.Array:
        """x [..., in] @ this kernel [in, out], dequantised to the dtype of `x`; not differentiable in the kernel.

        The backward pass recomputes the plain kernel from what is stored: of it the forward pass keeps nothing.
        """
        return _matmul(x, self, out_dtype)

    def array_axes(self, axes: Axes) -> "QuantizedKernel":
        """Logical axes of the arrays, from those of the plain kernel; see `jaxsft.sharding.RULES`."""
        *lead, rows, columns = axes
        blocks, columns = f"{rows}_blocks", f"{columns}_columns"
        return dataclasses.replace(
            self,
            codes=(*lead, blocks, None, columns),
            scales=(*lead, blocks, columns),
            groups=None if self.groups is None else (*lead, None, None),
            mean=None if self.mean is None else tuple(lead),
        )


def quantize(kernel: jax.Array, kind: str, double: bool, dtype: Any = None) -> QuantizedKernel:
    """Quantises a kernel [..., in, out].

    Args:
      kernel: of any float dtype; computed in float32.
      kind: "nf4" or "int8".
      double: whether the scales are quantised too.
      dtype: of the plain kernel that the result stands for; default that of `kernel`.
    """
    *lead, rows, columns = kernel.shape
    blocks, size = block_sizes(rows)
    padded = jnp.pad(kernel, [(0, 0)] * len(lead) + [(0, blocks * size - rows), (0, 0)])
    codes, scales = encode(padded.reshape(*lead, blocks, size, columns), kind)
    groups = mean = None
    if double:
        scales, groups, mean = quantize_scales(scales)
    return QuantizedKernel(codes, scales, groups, mean, kernel.shape[-2], jnp.dtype(dtype or kernel.dtype))


def encode(weights: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
    """Codes of blocks [..., blocks, size, out] as `QuantizedKernel` has them, and float32 scales [..., blocks, out]."""
    weights = weights.astype(jnp.float32)
    size = weights.shape[-2]
    scales = jnp.max(jnp.abs(weights), axis=-2)
    share = weights / jnp.where(scales > 0, scales, 1)[..., None, :]
    if kind == "int8":
        return jnp.round(share * INT8_MAX).astype(jnp.int8), scales
    # the number of midpoints below it is the place of the nearest code
    middles = [(low + high) / 2 for low, high in itertools.pairwise(NF4_CODES)]
    codes = functools.reduce(jnp.add, [(share > middle).astype(jnp.uint8) for middle in middles])
    return codes[..., : size // 2, :] | (codes[..., size // 2 :, :] << 4), scales


def quantize_scales(scales: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Double quantisation: int8 codes of scales [..., blocks, out], the groups' scales over 127, the mean."""
    mean = jnp.mean(scales, axis=(-2, -1))
    centred = scales - mean[..., None, None]
    columns = scales.shape[-1]
    groups = -(-columns // GROUP)
    padded = jnp.pad(centred, [(0, 0)] * (scales.ndim - 1) + [(0, groups * GROUP - columns)])
    grouped = padded.reshape(*scales.shape[:-1], groups, GROUP)
    largest = jnp.max(jnp.abs(grouped), axis=-1)
    codes = jnp.round(grouped / jnp.where(largest > 0, largest, 1)[..., None] * INT8_MAX).astype(jnp.int8)
    return codes.reshape(padded.shape)[..., :columns], largest / INT8_MAX, mean


def block_sizes(rows: int) -> tuple[int, int]:
    """How many blocks so many rows make, and their size: even, at most 64, and 64 wherever that divides the rows."""
    blocks = -(-rows // BLOCK)
    size = -(-rows // blocks)
    return blocks, size + size % 2


def quantize_params(params: Any, kind: str, double: bool, dtype: Any = None) -> Any:
    """A model's parameters with the layers' linear maps quantised.

    Embedding, head, norms and biases stay plain. Runs under `jax.eval_shape` and `jax.jit`.

    Args:
      params: see `jaxsft.models.decoder`.
      kind: "nf4", "int8", or "none", which changes nothing.
      double: see `quantize`.
      dtype: that the quantised kernels stand for; default their own.
    """
    if kind == "none":
        return params

    def convert(path: Any, leaf: Any) -> Any:
        linear = path[0].key == "stacks" and path[-1].key == "kernel"
        return quantize(leaf, kind, double, dtype) if linear else leaf

    return jax.tree_util.tree_map_with_path(convert, params)


def dequantize_params(params: Any) -> Any:
    """The tree with plain kernels, in the dtypes that they stand for."""
    plain = lambda leaf: leaf.dequantize(None) if isinstance(leaf, QuantizedKernel) else leaf
    return jax.tree.map(plain, params, is_leaf=lambda leaf: isinstance(leaf, QuantizedKernel))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: jax.Array, kernel: QuantizedKernel, out_dtype: Any) -> jax.Array:
    return jnp.matmul(x, kernel.dequantize(x.dtype), preferred_element_type=out_dtype)


def _matmul_forward(x: jax.Array, kernel: QuantizedKernel, out_dtype: Any) -> tuple[jax.Array, Any]:
    return _matmul(x, kernel, out_dtype), (kernel, jnp.zeros((0,), x.dtype))


def _matmul_backward(out_dtype: Any, kept: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
    kernel, like = kept
    weights = kernel.dequantize(like.dtype)
    return jnp.matmul(gradient, weights.T, preferred_element_type=like.dtype), None


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _look_up(codes: jax.Array, dtype: Any) -> jax.Array:
    """NF4's values of uint8 codes, as a tree of 15 selects: vector units have those everywhere, and gathers nowhere."""
    values = [jnp.asarray(code, dtype) for code in NF4_CODES]
    for bit in range(4):
        chosen = (codes >> bit) & 1 != 0
        values = [jnp.where(chosen, high, low) for low, high in zip(values[::2], values[1::2])]
    return values[0]
