"""Attention on TPU by the splash kernel that ships with JAX: blockwise, masked blocks skipped, logits never stored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from jaxsft.sharding import BATCH_AXES, RULES

LANES = 128  # rows are cut into blocks of a multiple of this
BLOCKS = (512, 256, 128)  # lengths of blocks, the longest that divides the row is taken
HEAD_DIMS = (64, 128, 256)


def fits(q: jax.Array, k: jax.Array) -> bool:
    """Whether rows, heads and head size [B, T, H, D] suit the kernel and the mesh, on a TPU."""
    mesh = jax.sharding.get_abstract_mesh()
    platform = jax.default_backend() if mesh.empty else mesh.abstract_device.platform
    rows, heads = _ways(BATCH_AXES), _ways(RULES["heads"])
    return (
        platform == "tpu"
        and q.shape[1] == k.shape[1]
        and q.shape[1] % LANES == 0
        and q.shape[-1] in HEAD_DIMS
        and q.shape[0] % rows == 0
        and k.shape[2] % heads == 0
    )


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    window: int | None,
    soft_cap: float | None,
    scale: float,
    interpret: bool = False,
) -> jax.Array:
    """`jaxsft.models.attention.attention` without a cache, every device on its own rows and heads.

    Args:
      q, k, v, segment_ids, window, soft_cap, scale: see there; `fits` must hold.
      interpret: run the kernel as plain JAX operations, on any platform.
    """
    local = functools.partial(_local, window=window, soft_cap=soft_cap, scale=scale, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(q, k, v, segment_ids)
    heads = PartitionSpec(BATCH_AXES, None, RULES["heads"], None)
    specs = {"in_specs": (heads, heads, heads, PartitionSpec(BATCH_AXES, None)), "out_specs": heads}
    # The kernel is opaque to the check of which axes its result varies over.
    return jax.shard_map(local, mesh=mesh, **specs, check_vma=False)(q, k, v, segment_ids)


def _ways(axes: tuple[str, ...]) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes))
    return int(np.prod([sizes.get(axis, 1) for axis in axes]))


def _local(q, k, v, segment_ids, *, window, soft_cap, scale, interpret):
    length, heads = q.shape[1:3]
    shape = (length, length)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    block = next(size for size in BLOCKS if length % size == 0)
    forward = {"block_q": block, "block_kv": block, "block_kv_compute": block}
    backward = {"block_q_dkv": block, "block_kv_dkv": block, "block_kv_dkv_compute": block}
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(**forward, **backward, block_q_dq=block, block_kv_dq=block),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        interpret=interpret,
    )
    q = (q * jnp.asarray(scale, jnp.promote_types(q.dtype, jnp.float32))).astype(q.dtype)
    one_row = lambda q, k, v, ids: kernel(q, k, v, segment_ids=kernels.SegmentIds(ids, ids))
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # the kernel wants [heads, length, head_dim]
    mixed = jax.vmap(one_row)(q, k, v, segment_ids).swapaxes(1, 2)
    # To the kernel padding is a segment like any other.
    return jnp.where(segment_ids[:, :, None, None] > 0, mixed, 0).astype(v.dtype)
