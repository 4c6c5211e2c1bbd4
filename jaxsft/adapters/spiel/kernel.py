"""The linear map of SpIEL, y = x W' with W' = W + the deltas at their positions, and the gradients it gives.

The backward pass makes the dense gradient G = x^T g of one matrix of one layer, takes from it what is wanted, and lets
it go: its entries at the tuned positions, which are the gradient of the deltas; and, while statistics are gathered, its
entries at the candidates, or the candidates themselves, which are its largest entries.

Positions are int32, flat and row-major in the kernel [in, out], ascending and distinct. Lists are padded at their end
with positions beyond the matrix, which scatters drop and gathers read as 0.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsft.models.projection import Aux, Context, dense
from jaxsft.sharding import constrain

HALF = 1 << 16  # positions travel as two float32 numbers below this, among cotangents


class Static(NamedTuple):
    """What is known of a linear map before its arrays.

    Attributes:
      count: tuned weights, less the padding.
      axes: the kernel's logical axes.
      rounds_delta: whether deltas are rounded to the compute dtype before they are added, as the authors do; else the
        sum is.
      out_dtype: see `jaxsft.models.projection.Context`.
    """

    count: int
    axes: tuple[str, str]
    rounds_delta: bool = False
    out_dtype: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Watch:
    """What gathers statistics of one linear map: `probe` is all zeros, and its gradient is what is asked for.

    Attributes:
      probe: float32 [in, out], for the dense gradient; or [3, k], for values and positions of candidates, see `sample`.
      candidates: int32 [k]; None with a dense probe.
      fresh: bool []: whether candidates are yet to be found; None with a dense probe.
    """

    probe: jax.Array
    candidates: jax.Array | None = None
    fresh: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpIELNode:
    """One linear map's tuned weights: delta [k], idx int32 [k] (stacked: a leading layer axis)."""

    delta: jax.Array
    idx: jax.Array
    watch: Watch | None
    static: Static = dataclasses.field(metadata={"static": True})

    def project(self, x: jax.Array, kernel: Any, ctx: Context) -> tuple[jax.Array, Aux]:
        """The product with the tuned kernel."""
        static = self.static._replace(out_dtype=ctx.out_dtype)
        whole = lambda a: constrain(a, None)
        return _product(static, x, kernel, whole(self.delta), whole(self.idx), self.watch), {}


def tuned(kernel: Any, delta: jax.Array, idx: jax.Array, dtype: Any, rounds_delta: bool = False) -> jax.Array:
    """W' [in, out] in `dtype`.

    Args:
      kernel: [in, out], any float dtype or quantised.
      delta: [k].
      idx: int32 [k].
      dtype: in which W is taken; the sum is computed in at least float32 and rounded once.
      rounds_delta: see `Static`.
    """
    weights = dense(kernel, dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    if rounds_delta or wide == dtype:
        return weights.at[_places(weights, idx)].add(delta.astype(dtype), **_AT, mode="drop")
    values = gather(weights, idx).astype(wide) + delta.astype(wide)
    return weights.at[_places(weights, idx)].set(values.astype(dtype), **_AT, mode="drop")


def gather(matrix: jax.Array, idx: jax.Array) -> jax.Array:
    """[k], the entries at positions; 0 at padding."""
    return matrix.at[_places(matrix, idx)].get(**_AT, mode="fill", fill_value=0)


def largest(gradient: jax.Array, count: int, capacity: int) -> jax.Array:
    """int32 [capacity], the positions of the `count` entries [in, out] of largest size, ascending, padded."""
    _, positions = jax.lax.top_k(jnp.abs(gradient).reshape(-1), count)
    return padded(jnp.sort(positions.astype(jnp.int32)), gradient.size, capacity)


def padded(positions: jax.Array, size: int, capacity: int) -> jax.Array:
    """Positions with so many beyond a matrix of `size` entries at their end that there are `capacity`."""
    return jnp.concatenate([positions, size + jnp.arange(capacity - len(positions), dtype=jnp.int32)])


def sample(gradient: jax.Array, candidates: jax.Array, fresh: jax.Array, count: int) -> jax.Array:
    """float32 [3, k]: the gradient at the candidates, and their positions in two halves, see `positions_of`."""

    def find() -> jax.Array:
        return largest(gradient, count, len(candidates))

    positions = jax.lax.cond(fresh, find, lambda: candidates)
    values = gather(gradient, positions)
    return jnp.stack([values.astype(jnp.float32), *(half.astype(jnp.float32) for half in divmod(positions, HALF))])


def positions_of(sampled: jax.Array) -> jax.Array:
    """int32 [..., k], the positions in what `sample` returned, [..., 3, k]."""
    return sampled[..., 1, :].astype(jnp.int32) * HALF + sampled[..., 2, :].astype(jnp.int32)


_AT = {"indices_are_sorted": True, "unique_indices": True}


def _places(matrix: jax.Array, idx: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows and columns: a matrix that is split over devices is not put together for a flat index."""
    return idx // matrix.shape[1], idx % matrix.shape[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(
    static: Static, x: jax.Array, kernel: Any, delta: jax.Array, idx: jax.Array, watch: Watch | None
) -> jax.Array:
    del watch
    return _matmul(static, x, tuned(kernel, delta, idx, x.dtype, static.rounds_delta))


def _matmul(static: Static, x: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.matmul(x, weights, preferred_element_type=static.out_dtype)


def _forward(static: Static, *args: Any) -> tuple[jax.Array, Any]:
    return _product(static, *args), args


def _backward(static: Static, args: Any, cotangent: jax.Array) -> tuple:
    x, kernel, delta, idx, watch = args
    # Made again, not kept: under rematerialisation the compiler finds it in the forward pass just computed.
    weights = tuned(kernel, delta, idx, x.dtype, static.rounds_delta)
    _, pull = jax.vjp(functools.partial(_matmul, static), x, weights)
    by_x, gradient = pull(cotangent)
    gradient = constrain(gradient, *static.axes)
    by_delta = gather(gradient, idx).astype(delta.dtype)
    return by_x, None, by_delta, None, None if watch is None else _asked(static, watch, gradient)


def _asked(static: Static, watch: Watch, gradient: jax.Array) -> Watch:
    if watch.candidates is None:
        return Watch(gradient.astype(watch.probe.dtype))
    return Watch(sample(gradient, watch.candidates, watch.fresh, static.count).astype(watch.probe.dtype), None, None)


_product.defvjp(_forward, _backward)
