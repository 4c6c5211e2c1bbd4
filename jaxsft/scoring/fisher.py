"""The diagonal of the Fisher information of a model on given data: how much each parameter matters to it.

    F_i = 1/N sum_n (d log p(y_n | x_n) / d theta_i)^2

over N examples, y_n the targets of example n: the empirical Fisher, at the data's own answers. Kirkpatrick et al. 2017
(arXiv:1612.00796) write it so; with answers drawn from the model it would be the Fisher information proper. Gradients
are squared example by example: the square of a mean gradient would be another thing, near 0 for a trained model.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxsft.adapters.method import Method, Parts
from jaxsft.data.batch import Batch
from jaxsft.evaluation.scoring import hidden_states
from jaxsft.models.decoder import Decoder
from jaxsft.objectives.cross_entropy import weighted_cross_entropy
from jaxsft.sharding import replicated

Tree = Any
PIECE = 16  # examples of a compiled call


def diagonal_fisher(
    decoder: Decoder, method: Method, parts: Parts, rows: Batch, mesh: Mesh, chunk_size: int = 1024
) -> Tree:
    """float32, like `parts.params` in shapes and shardings.

    Args:
      decoder: the model's forward pass.
      method: how the parts make up the model.
      parts: of a run, on the mesh.
      rows: NumPy arrays [N, T], one example a row.
      mesh: the run's. One example is on all devices at a time, so memory above the parameters is that of one step of
        batch size 1 and a gradient.
      chunk_size: tokens whose logits exist at once.
    """

    def log_likelihood(params: Tree, row: Batch) -> jax.Array:
        own, adapters = method.compose(parts._replace(params=params), {})
        mask = (row.weights != 0).astype(jnp.float32)
        hidden = hidden_states(decoder, own, adapters, row)
        head_params = decoder.head_params(own, adapters)
        return -weighted_cross_entropy(decoder.head, head_params, hidden, row.targets, mask, chunk_size=chunk_size)[0]

    add = jax.jit(
        functools.partial(add_squared_gradients, log_likelihood),
        donate_argnums=0,
        out_shardings=jax.tree.map(lambda p: p.sharding, parts.params),
    )
    count, everywhere = len(rows.tokens), replicated(mesh)
    with jax.set_mesh(mesh):
        total = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), parts.params)
        for begin in tqdm(range(0, count, PIECE), desc="Fisher information", unit="batch", leave=False, disable=None):
            piece = jax.tree.map(operator.itemgetter(slice(begin, begin + PIECE)), rows)
            total = add(total, parts.params, _place(piece, everywhere))
        return jax.tree.map(lambda x: x / count, total)


def add_squared_gradients(
    log_likelihood: Callable[[Tree, Batch], jax.Array], total: Tree, params: Tree, rows: Batch
) -> Tree:
    """total + sum over rows of the squared gradient of that row's log-likelihood, one row after the other.

    Args:
      log_likelihood: of (params, a batch of one row), a scalar.
      total: like `params`.
      params: where gradients are taken.
      rows: arrays [N, ...], one example a row.
    """

    def add(total: Tree, row: Batch) -> tuple[Tree, None]:
        gradient = jax.grad(log_likelihood)(params, jax.tree.map(lambda x: x[None], row))
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype) ** 2, total, gradient), None

    return jax.lax.scan(add, total, rows)[0]


def _place(rows: Batch, sharding: Any) -> Batch:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), rows)
