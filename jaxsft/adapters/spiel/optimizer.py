"""The optimizers of SpIEL: Adam with an age for each weight, and SM3 over the tuned weights of a matrix.

Both give directions in the sense of `jaxsft.training.optimizer`; weight decay comes after the move.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Tree = Any


class AgedAdamState(NamedTuple):
    """Trees like the parameters.

    Attributes:
      age: int32, one more than the gradients that the moments have seen.
      mu: float32, decayed mean of gradients.
      nu: float32, of their squares.
    """

    age: Tree
    mu: Tree
    nu: Tree


def aged_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam whose bias corrections are of each weight's own age (the authors' `SftAdamW`).

    With m and v the decayed means, the direction is m / (1 - b1^age) * sqrt(1 - b2^age) / (sqrt(v) + eps).
    """

    def init(params: Tree) -> AgedAdamState:
        zeros = lambda: jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return AgedAdamState(jax.tree.map(lambda p: jnp.ones(p.shape, jnp.int32), params), zeros(), zeros())

    def update(grads: Tree, state: AgedAdamState, params: Tree | None = None) -> tuple[Tree, AgedAdamState]:
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)

        def direction(age: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            age = age.astype(jnp.float32)
            return m / (1 - b1**age) * jnp.sqrt(1 - b2**age) / (jnp.sqrt(v) + eps)

        directions = jax.tree.map(direction, state.age, mu, nu)
        return directions, AgedAdamState(jax.tree.map(lambda age: age + 1, state.age), mu, nu)

    return optax.GradientTransformation(init, update)


class SparseSM3State(NamedTuple):
    """Trees like the parameters; what the sums of squares of a matrix's tuned weights are known to be at most.

    Attributes:
      rows: float32 [layers, in].
      columns: float32 [layers, out].
    """

    rows: Tree
    columns: Tree


def sparse_sm3(shapes: Tree, positions: Callable[[Tree], Tree], eps: float) -> optax.GradientTransformationExtraArgs:
    """SM3-II (Anil et al. 2019, arXiv:1901.11150) of the weights that are tuned (the authors' `SftSM3`).

    A weight's sum of squares is estimated by nu = min(rho[row], kappa[column]) + g^2, its direction is
    g / sqrt(nu + eps), and rho and kappa become the largest nu of their row and column, and never less than they were.

    Args:
      shapes: a tree like the parameters, with the shape (in, out) of the matrix at each.
      positions: the method's `aux` -> a tree like the parameters, with their positions.
      eps: see above.
    """
    is_shape = lambda x: type(x) is tuple

    def init(params: Tree) -> SparseSM3State:
        zeros = lambda side: jax.tree.map(lambda s, p: jnp.zeros((len(p), s[side])), shapes, params, is_leaf=is_shape)
        return SparseSM3State(zeros(0), zeros(1))

    def update(
        grads: Tree, state: SparseSM3State, params: Tree | None = None, *, aux: Tree, **_: Any
    ) -> tuple[Tree, SparseSM3State]:
        del params
        step = jax.vmap(lambda *args: sm3_step(*args, eps))
        found = jax.tree.map(step, grads, positions(aux), state.rows, state.columns)
        pick = lambda i: jax.tree.map(lambda _, three: three[i], grads, found)
        return pick(0), SparseSM3State(pick(1), pick(2))

    return optax.GradientTransformationExtraArgs(init, update)


def sm3_step(
    gradient: jax.Array, idx: jax.Array, rows: jax.Array, columns: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one matrix: the directions [k], and the next rows [in] and columns [out]."""
    row, column = idx // len(columns), idx % len(columns)
    read = lambda sums, at: sums.at[at].get(mode="fill", fill_value=0)
    nu = jnp.minimum(read(rows, row), read(columns, column)) + gradient * gradient
    direction = gradient * jax.lax.rsqrt(nu + eps)
    return direction, rows.at[row].max(nu, mode="drop"), columns.at[column].max(nu, mode="drop")
