"""One decoder block as Flax NNX modules; every parameter carries the logical names of its axes.

Modules are built under `nnx.eval_shape` or `jax.vmap` and merged with one layer's plain arrays inside the scan over
layers (`jaxsft.models.decoder`), so nothing here knows of stacking, rematerialisation or sharding beyond the names.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxsft.models.architecture import Architecture, LayerKind, Rope
from jaxsft.models.attention import attention
from jaxsft.models.projection import Context, project
from jaxsft.sharding import constrain

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
Adapters = Mapping[str, Any]  # the module tree of one block, adapter nodes at its linear maps
Reports = dict[str, Any]  # the same tree, with what the adapters reported


class Rows(NamedTuple):
    """What all layers share of a forward pass.

    Attributes:
      segment_ids: int32 [B, T].
      positions: int32 [B, T].
      rotary: cosines and sines [B, T, 1, head_dim / 2] of every kind of rotary frequencies in the model.
      cached: int32 [B, S], segment ids of the cache's slots that are read, or None without a cache. The cache may have
        more: what lies behind is written but not seen.
    """

    segment_ids: jax.Array
    positions: jax.Array
    rotary: dict[Rope, tuple[jax.Array, jax.Array]]
    cached: jax.Array | None = None


class Cache(NamedTuple):
    """Keys and values [layers, B, kv_heads, S, head_dim] of all layers at one position of a stack's unit.

    Heads stand before slots, as the products of attention read them: nothing is transposed at every step.
    """

    k: jax.Array
    v: jax.Array

    @classmethod
    def empty(cls, layers: int, batch: int, length: int, arch: Architecture, dtype: Any) -> "Cache":
        """Zeros, of `length` slots."""
        zeros = lambda: jnp.zeros((layers, batch, arch.num_kv_heads, length, arch.head_dim), dtype)
        return cls(zeros(), zeros()).pinned()  # two buffers, so that both can be donated

    def pinned(self) -> "Cache":
        """With rows and heads split over the mesh."""
        return Cache(*(constrain(x, "layers", "batch", "kv_heads", "length", "head_dim") for x in self))

    def enter(self, at: jax.Array, new: "Cache") -> "Cache":
        """With `new`, as long or shorter, in place of the rows `at` [rows of `new`]; those past the end are dropped."""
        put = lambda old, new: old.at[:, at, :, : new.shape[3]].set(new.astype(old.dtype), mode="drop")
        return Cache(put(self.k, new.k), put(self.v, new.v))


class Linear(nnx.Module):
    """A linear map through `project`, with or without bias."""

    def __init__(
        self, name: str, shape: tuple[int, int], axes: tuple[str, str], bias: bool, std: float, rngs: nnx.Rngs
    ):
        self.name = name
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape), axes=axes)
        # A bias on the residual stream stays whole, one on heads or hidden units is split like them.
        self.bias = nnx.Param(jnp.zeros(shape[1]), axes=("norm" if axes[1] == "embed" else axes[1],)) if bias else None

    def __call__(self, x: jax.Array, adapters: Adapters, ctx: Context) -> tuple[jax.Array, Reports]:
        """[..., in] -> [..., out], and the adapter's report under the map's own name."""
        module = self.name.rpartition(".")[2]
        y, report = project(x, self.kernel.get_value(), adapters.get(module), named(ctx, self.name))
        y = y if self.bias is None else y + self.bias.get_value().astype(y.dtype)
        return y, {module: report} if report else {}


class Norm(nnx.Module):
    """RMS norm over the last axis, computed in at least float32; scales by w, or by 1 + w with `unit_offset`."""

    def __init__(self, size: int, eps: float, unit_offset: bool):
        self.eps, self.unit_offset = eps, unit_offset
        self.scale = nnx.Param(jnp.zeros(size) if unit_offset else jnp.ones(size), axes=("norm",))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., size] -> [..., size], in the dtype of `x`."""
        return rms_norm(x, self.scale.get_value(), self.eps, self.unit_offset)


class Attention(nnx.Module):
    """Projections, rotation and attention of one layer."""

    def __init__(self, arch: Architecture, kind: LayerKind, implementation: str, rngs: nnx.Rngs):
        self.arch, self.kind, self.implementation = arch, kind, implementation
        query, keys, std = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim, arch.init_std
        linear = lambda name, shape, axes, bias: Linear(f"attn.{name}", shape, axes, bias, std, rngs)
        self.q_proj = linear("q_proj", (arch.embed_dim, query), ("embed", "heads"), arch.qkv_bias)
        self.k_proj = linear("k_proj", (arch.embed_dim, keys), ("embed", "kv_heads"), arch.qkv_bias)
        self.v_proj = linear("v_proj", (arch.embed_dim, keys), ("embed", "kv_heads"), arch.qkv_bias)
        self.o_proj = linear("o_proj", (query, arch.embed_dim), ("heads", "embed"), arch.o_bias)
        if arch.qk_norm:
            self.q_norm = Norm(arch.head_dim, arch.norm_eps, arch.unit_offset)
            self.k_norm = Norm(arch.head_dim, arch.norm_eps, arch.unit_offset)

    def __call__(
        self, x: jax.Array, rows: Rows, adapters: Adapters, ctx: Context, cache: Cache | None, row: jax.Array
    ) -> tuple[jax.Array, Reports, Cache | None]:
        """[B, T, embed] -> [B, T, embed]; `row` is the layer's row in the cache."""
        arch, kind = self.arch, self.kind
        q, q_report = self.q_proj(x, adapters, ctx)
        k, k_report = self.k_proj(x, adapters, ctx)
        v, v_report = self.v_proj(x, adapters, ctx)
        q = q.reshape(*x.shape[:-1], arch.num_heads, arch.head_dim)
        k = k.reshape(*x.shape[:-1], arch.num_kv_heads, arch.head_dim)
        v = v.reshape(*x.shape[:-1], arch.num_kv_heads, arch.head_dim)
        if arch.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, rows.rotary[kind.rope]), rotate(k, rows.rotary[kind.rope])
        q = constrain(q, "batch", "length", "heads", "head_dim")
        k = constrain(k, "batch", "length", "kv_heads", "head_dim")
        v = constrain(v, "batch", "length", "kv_heads", "head_dim")
        keys = {}
        if cache is not None:
            cache = append(cache, k, v, rows, row)
            k, v = (x.astype(q.dtype).swapaxes(1, 2) for x in read(cache, row, rows.cached.shape[1]))
            slots = jnp.broadcast_to(jnp.arange(k.shape[1], dtype=jnp.int32), k.shape[:2])
            keys = {"kv_segment_ids": rows.cached, "kv_positions": slots}
        mixed = attention(
            q,
            k,
            v,
            rows.segment_ids,
            rows.positions,
            kind.window,
            arch.attn_soft_cap,
            arch.attn_scale,
            implementation=self.implementation,
            **keys,
        )
        mixed = constrain(mixed, "batch", "length", "heads", "head_dim").reshape(*x.shape[:-1], -1)
        y, o_report = self.o_proj(mixed, adapters, ctx)
        return y, q_report | k_report | v_report | o_report, cache


class MLP(nnx.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs):
        self.activation = arch.activation
        wide, std, bias = (arch.embed_dim, arch.mlp_dim), arch.init_std, arch.mlp_bias
        self.gate_proj = Linear("mlp.gate_proj", wide, ("embed", "mlp"), bias, std, rngs)
        self.up_proj = Linear("mlp.up_proj", wide, ("embed", "mlp"), bias, std, rngs)
        self.down_proj = Linear("mlp.down_proj", wide[::-1], ("mlp", "embed"), bias, std, rngs)

    def __call__(self, x: jax.Array, adapters: Adapters, ctx: Context) -> tuple[jax.Array, Reports]:
        """[B, T, embed] -> [B, T, embed]."""
        gate, gate_report = self.gate_proj(x, adapters, ctx)
        up, up_report = self.up_proj(x, adapters, ctx)
        hidden = constrain(ACTIVATIONS[self.activation](gate) * up, "batch", "length", "mlp")
        y, down_report = self.down_proj(hidden, adapters, ctx)
        return y, gate_report | up_report | down_report


class Block(nnx.Module):
    """Attention and MLP on the residual stream.

    Pre-LN, x + f(norm(x)); with `post_norms`, x + norm(f(norm(x))); in a Post-LN layer, norm(x + f(x)).
    """

    def __init__(self, arch: Architecture, kind: LayerKind, implementation: str, rngs: nnx.Rngs):
        self.attn = Attention(arch, kind, implementation, rngs)
        self.mlp = MLP(arch, rngs)
        self.post_norms, self.post_ln = arch.post_norms, kind.post_ln
        before = () if kind.post_ln else ("input_norm", "pre_mlp_norm")
        after = ("post_attn_norm", "post_mlp_norm") if kind.post_ln or arch.post_norms else ()
        for name in before + after:
            setattr(self, name, Norm(arch.embed_dim, arch.norm_eps, arch.unit_offset))

    def __call__(
        self, x: jax.Array, rows: Rows, adapters: Adapters, ctx: Context, cache: Cache | None, row: jax.Array
    ) -> tuple[jax.Array, Reports, Cache | None]:
        """[B, T, embed] -> [B, T, embed]; the reports of its adapters; the cache with this layer's keys and values."""
        read = x if self.post_ln else self.input_norm(x)
        y, attn_report, cache = self.attn(read, rows, adapters.get("attn", {}), ctx, cache, row)
        x = self._sum(x, y, "post_attn_norm")
        y, mlp_report = self.mlp(x if self.post_ln else self.pre_mlp_norm(x), adapters.get("mlp", {}), ctx)
        x = self._sum(x, y, "post_mlp_norm")
        reports = {"attn": attn_report, "mlp": mlp_report}
        return x, {name: report for name, report in reports.items() if report}, cache

    def _sum(self, x: jax.Array, y: jax.Array, norm: str) -> jax.Array:
        """The residual stream with what attention or MLP add to it."""
        if self.post_ln:
            x = getattr(self, norm)(x + y)
        else:
            x = x + (getattr(self, norm)(y) if self.post_norms else y)
        return constrain(x, "batch", "length", "act_embed")


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, unit_offset: bool) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis (Zhang & Sennrich 2019), in at least float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = x.astype(wide)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    scale = scale.astype(wide)
    return (y * (1 + scale if unit_offset else scale)).astype(x.dtype)


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """float64 [head_dim / 2], radians per token."""
    frequencies = rope.theta ** -(np.arange(0, head_dim, 2) / head_dim)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        turns = rope.original * frequencies / (2 * np.pi)  # within the original context
        share = np.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)  # 1 where fast: kept
        return frequencies * (share + (1 - share) / rope.factor)
    return frequencies


def rotary_tables(rope: Rope, head_dim: int, positions: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, T, 1, head_dim / 2] of int positions [B, T], in at least float32."""
    wide = jnp.promote_types(dtype, jnp.float32)
    angles = positions[..., None, None].astype(wide) * jnp.asarray(inverse_frequencies(rope, head_dim), wide)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding of [B, T, heads, head_dim], its halves being the pairs' two coordinates."""
    cos, sin = tables
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def append(cache: Cache, k: jax.Array, v: jax.Array, rows: Rows, row: jax.Array) -> Cache:
    """Writes new keys and values [B, T, ...] of one layer to the slots that their positions name, padding to none."""
    batch = jnp.arange(k.shape[0])[:, None]
    slots = cache_slots(rows.segment_ids, rows.positions, cache.k.shape[3])
    write = lambda old, new: old.at[row, batch, :, slots].set(new.astype(old.dtype), mode="drop")
    return Cache(write(cache.k, k), write(cache.v, v))


def read(cache: Cache, row: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """The first slots of one layer's keys and values, [B, kv_heads, length, head_dim].

    On CPUs they are copied out of the stack with their slots as the minor axis, without which XLA's products with them
    take several times as long. TPUs turn what they like by themselves.
    """
    turned = lambda x: jax.lax.optimization_barrier(x.swapaxes(2, 3)).swapaxes(2, 3)
    read = lambda x: jax.lax.platform_dependent(x[row, :, :, :length], cpu=turned, default=lambda x: x)
    return read(cache.k), read(cache.v)


def cache_slots(segment_ids: jax.Array, positions: jax.Array, length: int) -> jax.Array:
    """int32 [B, T]: a token's slot is its position; padding gets one past the end, which a scatter drops."""
    return jnp.where(segment_ids > 0, positions, length)


def named(ctx: Context, name: str) -> Context:
    """The context of one linear map: its name, and the key folded with it."""
    key = None if ctx.key is None else jax.random.fold_in(ctx.key, zlib.crc32(name.encode()))
    return dataclasses.replace(ctx, key=key, name=name)
