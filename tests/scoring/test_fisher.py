"""The diagonal Fisher information against closed forms and explicit gradients, example by example."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.adapters.full import Full
from jaxsft.config import MeshConfig
from jaxsft.models.decoder import Decoder
from jaxsft.scoring.fisher import PIECE, add_squared_gradients, diagonal_fisher
from jaxsft.sharding import make_mesh, tree_shardings
from tests.tiny import llama, make_batch, random_examples

ARCH = llama(num_hidden_layers=2)
DECODER = Decoder(ARCH, remat="none")


def test_softmax_regression_in_closed_form():
    """d log p(y | x) / d W = x (onehot(y) - p)^T, so F = mean_n x^2 ((onehot(y) - p)^2)^T; and far from (mean)^2."""
    rng = np.random.default_rng(0)
    weight, x, y = rng.normal(size=(3, 4)), rng.normal(size=(20, 3)), rng.integers(0, 4, 20)

    def log_likelihood(params, row):
        return jax.nn.log_softmax(row["x"][0] @ params["w"])[row["y"][0]]

    zeros, params = {"w": jnp.zeros((3, 4))}, {"w": jnp.asarray(weight, jnp.float32)}
    rows = {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y)}
    total = jax.jit(lambda t, p, r: add_squared_gradients(log_likelihood, t, p, r))(zeros, params, rows)
    logits = x @ weight
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    gradients = x[:, :, None] * (np.eye(4)[y] - p)[:, None, :]
    np.testing.assert_allclose(total["w"], (gradients**2).sum(0), rtol=1e-4)
    assert np.all(total["w"] > 2 * gradients.sum(0) ** 2 / 20)


def test_a_model_on_eight_devices():
    """More examples than a compiled call takes, frozen layers left out; gradients one by one from dense logits."""
    examples = random_examples(PIECE + 3, 10, seed=3)
    rows = make_batch([[example] for example in examples], 12, 1)
    base = DECODER.init(jax.random.key(0))
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    placed = jax.tree.map(jax.device_put, base, tree_shardings(DECODER.logical_axes(), base, mesh))
    method = Full(ARCH, ("embed", "layers.*.mlp.up_proj"))
    parts = method.split(placed, jax.random.key(0))
    fisher = diagonal_fisher(DECODER, method, parts, rows, mesh, chunk_size=8)

    @jax.jit
    def gradient(params, tokens, targets, mask):
        def log_likelihood(params):
            whole = method.merge(method.split(base, jax.random.key(0))._replace(params=params))
            ones, positions = jnp.ones_like(tokens), jnp.arange(tokens.shape[1])[None]
            hidden = DECODER.forward(whole, tokens, positions, ones).hidden
            log_p = jax.nn.log_softmax(DECODER.head(DECODER.head_params(whole), hidden))
            return jnp.sum(mask * jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0])

        return jax.grad(log_likelihood)(params)

    host = method.split(base, jax.random.key(0)).params
    want = jax.tree.map(lambda p: np.zeros(p.shape), host)
    for i in range(len(examples)):
        row = rows.tokens[i : i + 1], rows.targets[i : i + 1], (rows.weights[i : i + 1] != 0).astype(np.float32)
        want = jax.tree.map(lambda t, g: t + np.asarray(g, np.float64) ** 2, want, gradient(host, *row))

    def check(got, want, param):
        np.testing.assert_allclose(got, want / len(examples), rtol=2e-3, atol=1e-4 * want.max() / len(examples))
        assert got.sharding == param.sharding and got.dtype == jnp.float32

    jax.tree.map(check, fisher, want, parts.params)
