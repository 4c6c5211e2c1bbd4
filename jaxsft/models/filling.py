"""Writes a file's tensors into the rows of stacked, sharded arrays, piece by piece, quantised on the way if they are.

Devices hold the arrays in their final shardings and dtypes from the start; what exists besides is a piece or two, and
of a quantised matrix the float32 scales of its blocks. A plain matrix never exists whole.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxsft.models import weights
from jaxsft.models.quantized import QuantizedKernel, encode, quantize_scales
from jaxsft.models.tensorfiles import TensorFile

PIECE_BYTES = 1 << 25  # what is read, transferred and written into place at once, per device

Source = tuple[TensorFile, str]  # a file and a tensor's key in it


def fill(target: Any, row: int | None, tensor: weights.Tensor, source: Source) -> Any:
    """Writes a tensor into its row of the stacked array or quantised kernel, or all over an unstacked one.

    All devices write the same stretch of their own shards at once, so that the update needs no communication. `target`
    is donated.
    """
    if isinstance(target, QuantizedKernel):
        return _fill_quantized(target, row, tensor, source)
    sharding, stacked = target.sharding, row is not None
    local = sharding.shard_shape(target.shape)[stacked:]
    spec = (tuple(sharding.spec) + (None,) * target.ndim)[stacked : target.ndim]
    if tensor.transposed:
        local, spec = local[::-1], spec[::-1]
    place = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    update = _updater(sharding, place, tensor.transposed, stacked)
    for start, piece in _pieces(source, tensor.shape, local, place, np.dtype(target.dtype).itemsize):
        target = jax.block_until_ready(update(target, piece, np.int32(row or 0), np.int32(start)))
    return target


def _fill_quantized(target: QuantizedKernel, row: int, tensor: weights.Tensor, source: Source) -> QuantizedKernel:
    """The same for a kernel of a stack, whose rows are padded to whole blocks.

    What takes more than a block to know, the scales' own scales, is worked out once the matrix is through.
    """
    *_, blocks, _, columns = target.codes.shape
    shape = (columns, blocks * target.block_size)  # as in the file, padded
    sharding, held = target.codes.sharding, target.codes.sharding.shard_shape(target.codes.shape)
    _, blocks_spec, _, columns_spec = tuple(sharding.spec) + (None,) * (4 - len(sharding.spec))
    place = NamedSharding(sharding.mesh, PartitionSpec(columns_spec, blocks_spec))
    scales_sharding = NamedSharding(sharding.mesh, PartitionSpec(blocks_spec, columns_spec))
    new = jax.jit(functools.partial(jnp.zeros, (blocks, columns), jnp.float32), out_shardings=scales_sharding)
    update = _encoder(target.kind, target.block_size, sharding, scales_sharding, place)
    codes, scales, layer = target.codes, new(), np.int32(row)
    for start, piece in _pieces(source, shape, (held[-1], held[-3] * target.block_size), place, 4):
        codes, scales = jax.block_until_ready(update(codes, scales, piece, layer, np.int32(start)))
    small = (target.scales, target.groups, target.mean)
    small = _scale_writer(jax.tree.map(lambda x: x.sharding, small))(small, scales, layer)
    return dataclasses.replace(target, codes=codes, **dict(zip(("scales", "groups", "mean"), small)))


def _pieces(
    source: Source, shape: tuple[int, ...], local: tuple[int, ...], place: NamedSharding, itemsize: int
) -> Iterator[tuple[int, jax.Array]]:
    """Stretches of a tensor's first axis, the same of every device's shard.

    Args:
      source: the tensor.
      shape: its shape, or a larger one that is padded with zeros at the end of later axes.
      local: shape of a shard.
      place: how it is split.
      itemsize: bytes a number takes on the device.

    Returns:
      (where the stretch begins in every shard, an array split like `place`) one after the other.
    """
    file, key = source
    width = itemsize * int(np.prod(local[1:], dtype=np.int64))
    step = min(max(PIECE_BYTES // width, 1), local[0])
    corners = place.addressable_devices_indices_map(shape)
    for start in range(0, local[0], step):
        stop = min(start + step, local[0])
        read: dict[tuple[int, ...], np.ndarray] = {}  # devices may hold the same part
        parts = []
        for device, corner in corners.items():
            begin = tuple(s.start or 0 for s in corner)
            if begin not in read:
                rest = [slice(b, b + n) for b, n in zip(begin[1:], local[1:])]
                part = file.read(key, (slice(begin[0] + start, begin[0] + stop), *rest))
                missing = [(0, n - have) for n, have in zip((stop - start, *local[1:]), part.shape)]
                read[begin] = np.pad(part, missing) if np.any(missing) else part
            parts.append(jax.device_put(read[begin], device))
        whole = (shape[0] // local[0] * (stop - start), *shape[1:])
        yield start, jax.make_array_from_single_device_arrays(whole, place, parts)


@functools.cache
def _updater(target: NamedSharding, place: NamedSharding, transposed: bool, stacked: bool) -> Callable[..., jax.Array]:
    def local(array, piece, row, start):
        piece = piece.T if transposed else piece
        corner = [0] * piece.ndim
        corner[-1 if transposed else 0] = start
        if stacked:
            piece, corner = piece[None], [row, *corner]
        return jax.lax.dynamic_update_slice(array, piece.astype(array.dtype), corner)

    none = PartitionSpec()
    specs = {"in_specs": (target.spec, place.spec, none, none), "out_specs": target.spec}
    return jax.jit(jax.shard_map(local, mesh=target.mesh, **specs, check_vma=False), donate_argnums=0)


@functools.cache
def _encoder(
    kind: str, size: int, codes: NamedSharding, scales: NamedSharding, place: NamedSharding
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(codes of all layers, scales of this one, piece [out, blocks * size], layer, start) -> both, updated."""

    def local(held, held_scales, piece, row, start):
        new, new_scales = encode(piece.T.reshape(-1, size, piece.shape[0]), kind)
        held = jax.lax.dynamic_update_slice(held, new[None], (row, 0, 0, start))
        return held, jax.lax.dynamic_update_slice(held_scales, new_scales, (0, start))

    none, targets = PartitionSpec(), (codes.spec, scales.spec)
    specs = {"in_specs": (*targets, place.spec, none, none), "out_specs": targets}
    return jax.jit(jax.shard_map(local, mesh=codes.mesh, **specs, check_vma=False), donate_argnums=(0, 1))


@functools.cache
def _scale_writer(shardings: tuple[NamedSharding | None, ...]) -> Callable[..., tuple[Any, ...]]:
    """((scales, groups, mean) of all layers, float32 scales of one, its row) -> the first, updated."""

    def write(held, scales, row):
        new = (scales, None, None) if held[1] is None else quantize_scales(scales)
        return jax.tree.map(lambda array, one: array.at[row].set(one), held, new)

    return jax.jit(write, out_shardings=shardings, donate_argnums=0)
