"""One sweep of the head over chunks of tokens, with or without gradients; `[tokens, vocabulary]` never exists.

Everything that needs logits during training is a `Measure` of them: a few numbers a token. A sweep visits the active
tokens (gathered to the front, so that it stops when they are through), applies the head to a chunk of them, measures,
and where the derivative with respect to the measured numbers is known pulls it back through the head at once. That
takes three products with the head (two where either its parameters or the hidden states are not differentiated);
recomputation would take four. Three functions are built on it:

  `weighted_sum`  every token's derivative is known beforehand (its weight): gradients come with the forward sweep.
  `losses`        one loss a token, whose factor is known only later: under a frozen head its derivative by the hidden
                  states comes with the forward sweep and is multiplied by the factor in the backward pass.
  `per_token`     several values a token, each with its own factor: a forward sweep, and a second one in the backward
                  pass, which `losses` too needs for a trained head.

Each data-parallel device sweeps the tokens of its own rows: none moves, and gradients are added over devices once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxsft.sharding import FREE, constrain, data_shards

Values = dict[str, jax.Array]  # name -> a number for each token
Head = Callable[[Any, Any], Any]


class Measure(Protocol):
    """A few numbers for each token's logits, and their derivative written by hand, so that it fuses."""

    def values(self, logits: Any, labels: Any) -> Values:
        """Floats [...] from logits [..., V] (or a tree of such) and labels [...]."""
        ...

    def pullback(self, logits: Any, labels: Any, values: Values, cotangents: Values) -> Any:
        """The cotangents of the logits, in their shapes and dtypes, from those of the values."""
        ...


def weighted_sum(
    head: Head,
    measure: Measure,
    integrand: Callable[[Values, Any], jax.Array],
    params: Any,
    hidden: Any,
    labels: Any,
    weights: jax.Array,
    chunk_size: int,
) -> tuple[jax.Array, Values]:
    """Sum over tokens of weight * integrand(values, labels), differentiable in `params` and `hidden`.

    Args:
      head: `head(params, hidden[..., D]) -> logits[..., V]`; closes over nothing that is differentiated.
      measure: what is measured of the logits.
      integrand: the loss of a token from its measured values and labels; elementwise.
      params: a tree; only leaves that are being differentiated get a gradient, the others cost nothing.
      hidden: [B, T, D], or a tree of such arrays.
      labels: a tree of arrays [B, T] for measure and integrand; not differentiated.
      weights: [B, T]; tokens of weight zero are skipped.
      chunk_size: tokens per data-parallel device whose logits exist at once.

    Returns:
      The scalar, and the measured values [B, T]: without gradient, and 0 where the weight is 0.

    Raises:
      ValueError: if `labels` or `weights` are being differentiated: they have no gradient here.
    """

    def finish(values, labels, weights):
        losses = integrand(values, labels)
        return jnp.sum(jnp.where(weights != 0, losses * weights.astype(losses.dtype), 0)), values

    def cotangents(values, labels, weights):
        losses, pull = jax.vjp(lambda v: integrand(v, labels), values)
        return pull(weights.astype(losses.dtype))[0]

    @jax.custom_vjp
    def run(params, hidden, labels, weights):
        return finish(_values(head, measure, params, hidden, labels, weights != 0, chunk_size), labels, weights)

    def run_forward(*primals):
        arrays, wanted = _unwrap(primals)
        if any(jax.tree.leaves(wanted[2:])):
            raise ValueError(
                "labels and weights of a chunked loss have no gradient; apply jax.lax.stop_gradient to them"
            )
        params, hidden, labels, weights = arrays
        values, gradients = _gradients(
            head, measure, params, hidden, labels, weights != 0, chunk_size, wanted[:2], cotangents, weights
        )
        return finish(values, labels, weights), gradients

    def run_backward(gradients, cotangents):
        scale, _ = cotangents
        if isinstance(scale, SymbolicZero):
            return None, None, None, None
        return *jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradients), None, None

    run.defvjp(run_forward, run_backward, symbolic_zeros=True)
    loss, values = run(params, hidden, labels, weights)
    return loss, jax.lax.stop_gradient(values)


def losses(
    head: Head,
    measure: Measure,
    integrand: Callable[[Values, Any], jax.Array],
    params: Any,
    hidden: Any,
    labels: Any,
    active: jax.Array,
    chunk_size: int,
) -> tuple[jax.Array, Values]:
    """integrand(values, labels) of every token, [B, T], differentiable in `params` and `hidden`.

    Arguments as for `weighted_sum`, with `active`, bool [B, T], in place of the weights: the other tokens are skipped
    and have loss 0.

    Returns:
      The losses, and the measured values [B, T], which have no gradient.
    """

    def finish(values, labels, active):
        return jnp.where(active, integrand(values, labels), 0), values

    def unit(values, labels, factors):
        result, pull = jax.vjp(lambda v: integrand(v, labels), values)
        return pull(factors.astype(result.dtype))[0]

    def sweep(params, hidden, labels, active, wanted, factors):
        return _gradients(head, measure, params, hidden, labels, active, chunk_size, wanted, unit, factors)

    @jax.custom_vjp
    def run(params, hidden, labels, active):
        return finish(_values(head, measure, params, hidden, labels, active, chunk_size), labels, active)

    def run_forward(*primals):
        arrays, wanted = _unwrap(primals)
        params, hidden, labels, active = arrays
        if any(jax.tree.leaves(wanted[0])):
            return run(*arrays), {"arrays": arrays, "wanted": _Flags(jax.tree.leaves(wanted[:2]))}
        values, slopes = sweep(params, hidden, labels, active, wanted[:2], jnp.ones(active.shape, jnp.float32))
        return finish(values, labels, active), {"slopes": slopes}

    def run_backward(residuals, cotangents):
        factors, _ = cotangents
        if isinstance(factors, SymbolicZero):
            return None, None, None, None
        if "slopes" in residuals:
            by_params, by_hidden = residuals["slopes"]
            scaled = jax.tree.map(lambda slope: (slope * factors[..., None]).astype(slope.dtype), by_hidden)
            return by_params, scaled, None, None
        params, hidden, labels, active = residuals["arrays"]
        wanted = jax.tree.unflatten(jax.tree.structure((params, hidden)), residuals["wanted"])
        return *sweep(params, hidden, labels, active, wanted, factors)[1], None, None

    run.defvjp(run_forward, run_backward, symbolic_zeros=True)
    result, values = run(params, hidden, labels, active)
    return result, jax.lax.stop_gradient(values)


def per_token(
    head: Head, measure: Measure, params: Any, hidden: Any, labels: Any, active: jax.Array, chunk_size: int
) -> Values:
    """The measured values of every token, differentiable in `params` and `hidden`; arguments as for `weighted_sum`.

    Args:
      active: bool [B, T]; the other tokens are skipped and have value 0.
    """

    @jax.custom_vjp
    def run(params, hidden, labels, active):
        return _values(head, measure, params, hidden, labels, active, chunk_size)

    def run_forward(*primals):
        arrays, wanted = _unwrap(primals)
        return run(*arrays), (arrays, _Flags(jax.tree.leaves(wanted[:2])))

    def run_backward(residuals, cotangents):
        (params, hidden, labels, active), flags = residuals
        wanted = jax.tree.unflatten(jax.tree.structure((params, hidden)), flags)
        known = {name: c for name, c in cotangents.items() if not isinstance(c, SymbolicZero)}

        def look_up(values, labels, known):
            return {name: known.get(name, jnp.zeros_like(value)) for name, value in values.items()}

        _, gradients = _gradients(head, measure, params, hidden, labels, active, chunk_size, wanted, look_up, known)
        return *gradients, None, None

    run.defvjp(run_forward, run_backward, symbolic_zeros=True)
    return run(params, hidden, labels, active)


def _values(head, measure, params, hidden, labels, active, chunk_size) -> Values:
    """The forward sweep: one product with the head."""
    chunks = _Chunks.plan(active, chunk_size)
    hidden, labels = chunks.split((hidden, labels))

    def values_of(i):
        logits = _constrained(head(params, chunks.hidden(hidden, i)), "batch")
        return _masked(measure.values(logits, chunks.cut(labels, i)), chunks.kept(i))

    def body(i, values):
        return chunks.paste(values, values_of(i), i)

    start = chunks.room(jax.eval_shape(values_of, 0))
    return chunks.restore(jax.lax.fori_loop(0, chunks.count, body, start))


def _gradients(head, measure, params, hidden, labels, active, chunk_size, wanted, cotangents, given):
    """The sweep with gradients: values [B, T], and the gradients of (params, hidden), None for leaves not `wanted`.

    `cotangents(values, labels, given)` are the derivatives by the values of a chunk; `given` is a tree of [B, T].
    Every shard sums its own gradient of the parameters; the shards are added once, behind the loop.
    """
    chunks = _Chunks.plan(active, chunk_size)
    hidden, labels, given = chunks.split((hidden, labels, given))
    wanted_params, wanted_hidden = wanted

    def on_shard(hidden, keep, labels, given):
        def logits_of(some_params, some_hidden):
            return _constrained(head(_merge(params, some_params), _merge(hidden, some_hidden)))

        logits, pull = jax.vjp(logits_of, _select(params, wanted_params), _select(hidden, wanted_hidden))
        values = _masked(measure.values(logits, labels), keep)
        seeds = _masked(cotangents(values, labels, given), keep)
        return values, *pull(measure.pullback(logits, labels, values, seeds))

    def step(i):
        return jax.vmap(on_shard)(chunks.hidden(hidden, i), chunks.kept(i), chunks.cut(labels, i), chunks.cut(given, i))

    def body(i, carry):
        all_values, sums, all_dhidden = carry
        values, dparams, dhidden = step(i)
        sums = jax.tree.map(lambda total, d: total + d.astype(total.dtype), sums, dparams)
        return chunks.paste(all_values, values, i), _pinned(sums), chunks.paste(all_dhidden, dhidden, i)

    values, dparams, dhidden = jax.eval_shape(step, 0)
    sums = jax.tree.map(lambda d: jnp.zeros(d.shape, jnp.promote_types(d.dtype, jnp.float32)), dparams)
    start = (chunks.room(values), _pinned(sums), chunks.room(dhidden))
    values, sums, dhidden = jax.lax.fori_loop(0, chunks.count, body, start)
    sums = jax.tree.map(lambda total, d: jnp.sum(total, axis=0).astype(d.dtype), sums, dparams)
    return chunks.restore(values), (sums, chunks.restore(dhidden))


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """How the tokens of [B, T] are cut: S shards of n tokens, active ones first, then `width` of every shard at a time.

    A shard is the rows that live on one data-parallel device, so that no token ever moves to another device.
    """

    order: jax.Array  # int32 [S, columns], the token of its shard that each column holds
    keep: jax.Array  # bool [S, columns], False in columns without active token
    shape: tuple[int, int]  # B, T
    width: int

    @classmethod
    def plan(cls, active: jax.Array, chunk_size: int) -> "_Chunks":
        batch, length = active.shape
        shards = data_shards(jax.sharding.get_abstract_mesh())
        shards = shards if batch % shards == 0 else 1  # rows that do not divide have no home: the partitioner decides
        active = constrain(active, "batch", "length").reshape(shards, -1)
        width = min(active.shape[1], chunk_size)
        padding = ((0, 0), (0, -active.shape[1] % width))
        order = jnp.argsort(~active, axis=1, stable=True).astype(jnp.int32)
        keep = _take(active, order)
        return cls(jnp.pad(order, padding), jnp.pad(keep, padding), (batch, length), width)

    @property
    def count(self) -> jax.Array:
        """Chunks that hold an active token; those behind are never computed."""
        return -(-jnp.max(jnp.sum(self.keep, axis=1, dtype=jnp.int32)) // self.width)

    def split(self, tree: Any) -> Any:
        """[S, n, ...] of every array [B, T, ...]."""
        return jax.tree.map(lambda x: _pinned(x.reshape(self.order.shape[0], -1, *x.shape[2:])), tree)

    def cut(self, tree: Any, i: jax.Array) -> Any:
        """[S, width, ...] of every array [S, n, ...]."""
        order = self._slice(self.order, i)
        return jax.tree.map(lambda x: _take(x, order), tree)

    def kept(self, i: jax.Array) -> jax.Array:
        """Which tokens of the chunk are active, bool [S, width]."""
        return self._slice(self.keep, i)

    def hidden(self, tree: Any, i: jax.Array) -> Any:
        """As `cut`, with zeros for inactive tokens: what stands there may be anything, even NaN."""
        return _masked(self.cut(tree, i), self.kept(i)[..., None])

    def room(self, shapes: Any) -> Any:
        """Zeros for all chunks of arrays of these shapes."""
        columns = self.order.shape[1]
        return _pinned(jax.tree.map(lambda s: jnp.zeros((s.shape[0], columns, *s.shape[2:]), s.dtype), shapes))

    def paste(self, tree: Any, chunk: Any, i: jax.Array) -> Any:
        """Puts a chunk into its place in the room."""
        put = lambda x, c: jax.lax.dynamic_update_slice_in_dim(x, c, i * self.width, axis=1)
        return _pinned(jax.tree.map(put, tree, chunk))

    def restore(self, tree: Any) -> Any:
        """Every token back where it came from: [B, T, ...] of [S, columns, ...]."""
        tokens = self.shape[0] * self.shape[1] // self.order.shape[0]
        position = jnp.argsort(self.order[:, :tokens], axis=1)
        return jax.tree.map(lambda x: _take(x, position).reshape(*self.shape, *x.shape[2:]), tree)

    def _slice(self, x: jax.Array, i: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, i * self.width, self.width, axis=1)


@jax.tree_util.register_static
class _Flags(tuple):
    """Which leaves are being differentiated, kept among residuals as a static value."""


def _take(x: jax.Array, order: jax.Array) -> jax.Array:
    """x[s, order[s, c]], a gather that is local to each shard, hence to each device."""
    return jax.vmap(lambda row, indices: row.at[indices].get(mode="promise_in_bounds"))(x, order)


def _masked(tree: Any, keep: jax.Array) -> Any:
    return jax.tree.map(lambda x: jnp.where(keep, x, 0), tree)


def _constrained(logits: Any, *shards: str) -> Any:
    return jax.tree.map(lambda z: constrain(z, *shards, "length", "vocab"), logits)


def _pinned(tree: Any) -> Any:
    """Leading axes over the data-parallel devices, the others as the partitioner likes."""
    return jax.tree.map(lambda x: constrain(x, "batch", *[FREE] * (x.ndim - 1)), tree)


def _unwrap(primals: Any) -> tuple[Any, Any]:
    """The arrays of custom_vjp's primals, and which of them are being differentiated."""
    return jax.tree.map(lambda p: p.value, primals), jax.tree.map(lambda p: p.perturbed, primals)


def _select(tree: Any, wanted: Any) -> Any:
    """The wanted leaves; None in place of the others."""
    return jax.tree.map(lambda x, want: x if want else None, tree, wanted)


def _merge(tree: Any, some: Any) -> Any:
    """The tree, with leaves from `some` wherever it has them."""
    return jax.tree.map(lambda x, new: x if new is None else new, tree, some)
