"""Exactly the k largest entries of an array, without sorting it.

Non-negative float32 numbers are ordered like their bits read as integers. So the k-th largest is found by halving the
range of integers, counting what lies above: 31 passes over the array, whose counts are sums and so do not care how the
array is split over devices. One array in a host's memory is partitioned there instead, which is quicker. Among entries
equal to the k-th largest those of lowest index are taken, so that exactly k are, wherever it runs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ALL, NONE = np.int32(-1), np.int32(2**31 - 1)  # thresholds that every number and no number lies above


class Cut(NamedTuple):
    """The rule that takes the k largest: bits above `threshold`, or equal to it and of index below `end`.

    Attributes:
      threshold: int32, of the bits of a float32.
      end: int32, of the flat index.
    """

    threshold: jax.Array | np.int32
    end: jax.Array | np.int32


def largest(magnitudes: jax.Array, count: int, all_ties: bool = False) -> Cut:
    """The cut that takes the largest of an array's entries.

    Args:
      magnitudes: float32, non-negative, of any shape, fewer than 2^31.
      count: how many.
      all_ties: whether to take every entry that equals the last one taken, and so perhaps more than `count`.
    """
    if count <= 0 or count >= magnitudes.size:
        return Cut(ALL if count > 0 else NONE, np.int32(0))
    cut = _on_host(magnitudes, count) if _is_on_host(magnitudes) else _by_halving(magnitudes, count)
    return cut._replace(end=np.int32(2**31 - 1)) if all_ties else cut


def taken(magnitudes: jax.Array, cut: Cut) -> jax.Array:
    """bool, of the shape of `magnitudes`: which entries a cut takes."""
    bits = _bits(magnitudes)
    index = jax.lax.iota(jnp.int32, bits.size).reshape(bits.shape)
    return (bits > cut.threshold) | ((bits == cut.threshold) & (index < cut.end))


def share(density: float, size: int) -> int:
    """How many of `size` entries a density keeps: its floor (but for the rounding of the product), at least one."""
    return max(1, int(density * size + 1e-9)) if density > 0 and size else 0


def _bits(magnitudes: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(magnitudes.astype(jnp.float32), jnp.int32)


def _is_on_host(x: jax.Array) -> bool:
    if isinstance(x, jax.core.Tracer):
        return False
    return isinstance(x, np.ndarray) or [device.platform for device in x.devices()] == ["cpu"]


def _on_host(magnitudes: jax.Array, count: int) -> Cut:
    flat = np.asarray(magnitudes, np.float32).reshape(-1)
    threshold = np.partition(flat, flat.size - count)[flat.size - count]
    equal = count - int(np.count_nonzero(flat > threshold))  # how many of those equal to it are taken
    end = np.flatnonzero(flat == threshold)[equal - 1] + 1
    return Cut(threshold.view(np.int32), np.int32(end))


@jax.jit
def _by_halving(magnitudes: jax.Array, count: int) -> Cut:
    bits = _bits(magnitudes)

    def raise_bit(i, low):
        middle = low | (1 << (30 - i))
        return jnp.where(jnp.sum(bits >= middle, dtype=jnp.int32) >= count, middle, low)

    threshold = jax.lax.fori_loop(0, 31, raise_bit, jnp.int32(0))
    index = jax.lax.iota(jnp.int32, bits.size).reshape(bits.shape)
    equal = count - jnp.sum(bits > threshold, dtype=jnp.int32)

    def raise_end(i, low):
        """The largest end below which fewer of the equal ones lie than are taken."""
        middle = low | (1 << (30 - i))
        below = jnp.sum((bits == threshold) & (index < middle), dtype=jnp.int32)
        return jnp.where(below < equal, middle, low)

    return Cut(threshold, jax.lax.fori_loop(0, 31, raise_end, jnp.int32(0)) + 1)
