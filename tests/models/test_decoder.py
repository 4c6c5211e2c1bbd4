"""The decoder's own promises: isolation, remat, adapters and their context, precision, compile size."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.models.decoder import Decoder
from jaxsft.models.projection import Context, dense
from tests.models.make_golden import GOLDEN
from tests.models.test_architecture import read
from tests.models.test_parity import load, run

LENGTHS = [9, 12, 7]  # longer than the golden models' window of 8


def random_params(decoder: Decoder, dtype: Any = np.float32) -> dict:
    """Standard normal times 0.3, without the compilation that `init` costs."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), dtype), decoder.abstract_params())


def packed(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row of examples of `LENGTHS` and four slots of padding."""
    positions = np.concatenate([np.arange(n) for n in LENGTHS] + [np.zeros(4, int)])
    segments = np.repeat([1, 2, 3, 0], [*LENGTHS, 4])
    return ids[None].astype(np.int32), positions[None].astype(np.int32), segments[None].astype(np.int32)


@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_examples_of_a_row_do_not_touch_each_other(case):
    decoder, params = load(GOLDEN / case)
    ids = np.random.default_rng(1).integers(1, 96, 32)
    ids[-4:] = 0
    forward, head = jax.jit(decoder.forward), jax.jit(decoder.head)
    hidden = np.asarray(forward(params, *packed(ids)).hidden[0])
    edited = ids.copy()
    edited[9:21] = edited[9:21][::-1]
    other = np.asarray(forward(params, *packed(edited)).hidden[0])
    np.testing.assert_array_equal(hidden[:9], other[:9])
    np.testing.assert_array_equal(hidden[21:28], other[21:28])
    assert np.abs(hidden[9:21] - other[9:21]).max() > 0.1
    assert np.all(np.isfinite(hidden))
    alone = np.concatenate([run(decoder, params, part[None])[0] for part in np.split(ids[:28], [9, 21])])
    np.testing.assert_allclose(head(params, hidden)[:28], alone, atol=2e-5)


@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_gradients_equal_finite_differences_in_float64(remat):
    arch, rng = read("gemma2", head_dim=8, sliding_window=8, num_hidden_layers=2), np.random.default_rng(1)
    with jax.enable_x64(True):
        decoder = Decoder(arch, dtype=jnp.float64, remat=remat)
        params = random_params(decoder, np.float64)
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
        rows = packed(rng.integers(1, 96, 32))
        weights = rng.normal(size=(1, 32, 96)) * (rows[2] > 0)[..., None]

        @jax.jit
        @jax.value_and_grad
        def loss(params):
            logits = decoder.head(params, decoder.forward(params, *rows).hidden)
            return jnp.sum(weights * jax.nn.log_softmax(logits))

        value, gradient = loss(params)
        assert value.dtype == jnp.float64
        slope = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction))))
        at = lambda step: loss(jax.tree.map(lambda p, d: np.asarray(p) + step * d, params, direction))[0]
        numeric = (8 * (at(1e-5) - at(-1e-5)) - (at(2e-5) - at(-2e-5))) / 12e-5
        np.testing.assert_allclose(slope, numeric, rtol=1e-7)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Probe:
    """An adapter that scales its map and reports what it was told."""

    scale: jax.Array

    def project(self, x: jax.Array, kernel: Any, ctx: Context) -> tuple[jax.Array, dict]:
        y = jnp.take(kernel, x, axis=0) if jnp.issubdtype(x.dtype, jnp.integer) else x @ dense(kernel, x.dtype)
        report = {} if ctx.key is None else {"key": jax.random.key_data(ctx.key)}
        return y * self.scale.astype(y.dtype), report


def test_every_linear_map_asks_its_adapter():
    arch = read("gemma3_text", num_hidden_layers=7, sliding_window_pattern=3, head_dim=8)
    decoder = Decoder(arch)
    forward, head, params = jax.jit(decoder.forward), jax.jit(decoder.head), random_params(decoder)
    maps = {"attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
    scales = np.random.default_rng(0).uniform(0.5, 2, (7, 7)).astype(np.float32)  # [layer, map]

    def nodes(stack, u):
        rows = np.array([stack.layer(u, row) for row in range(stack.repeats)])
        names = [(module, name) for module, names in maps.items() for name in names]
        tree = {module: {} for module in maps}
        for i, (module, name) in enumerate(names):
            tree[module][name] = Probe(jnp.asarray(scales[rows, i])), rows, i
        return tree

    trees = {str(s): {str(u): nodes(stack, u) for u in range(len(stack.unit))} for s, stack in enumerate(arch.stacks)}
    is_triple = lambda x: isinstance(x, tuple)
    adapters = {"stacks": jax.tree.map(lambda t: t[0], trees, is_leaf=is_triple)}
    adapters |= {"embed": Probe(jnp.float32(1.5)), "head": Probe(jnp.float32(0.5))}
    rows = packed(np.arange(32))
    output = forward(params, *rows, adapters=adapters, ctx=Context(key=jax.random.key(3)))

    scaled = jax.tree.map(lambda x: x, params)
    for s, units in trees.items():
        for u, modules in units.items():
            for module, names in modules.items():
                for name, (node, _, _) in names.items():
                    scaled["stacks"][s][u][module][name]["kernel"] *= node.scale[:, None, None]
    scaled["embed"] = {"embedding": params["embed"]["embedding"] * 1.5}
    expected = forward(scaled, *rows).hidden
    np.testing.assert_allclose(output.hidden, expected, atol=1e-4)
    logits = head(decoder.head_params(params, adapters), expected)
    np.testing.assert_allclose(logits, 0.5 * head(params, expected), atol=1e-5)
    np.testing.assert_allclose(head(params, expected, adapters), logits, atol=1e-6)

    keys = [tuple(output.aux["embed"]["key"].tolist())]
    for path, leaf in jax.tree_util.tree_leaves_with_path(output.aux["stacks"]):
        if path[-1].key == "key":
            keys += [tuple(key) for key in leaf.tolist()]
    assert len(keys) == 1 + 49 and len(set(keys)) == len(keys)


def test_noise_is_added_to_the_embeddings():
    decoder = Decoder(read("llama"))
    forward, params = jax.jit(decoder.forward), random_params(decoder)
    rows, others = packed(np.arange(32)), packed(np.arange(1, 33))
    table = np.asarray(params["embed"]["embedding"])
    noised = forward(params, *rows, embed_noise=table[others[0]] - table[rows[0]]).hidden
    np.testing.assert_allclose(noised, forward(params, *others).hidden, atol=1e-4)


def test_bfloat16_compute_gives_float32_logits_near_the_float32_ones():
    decoder, params = load(GOLDEN / "gemma2")
    low = Decoder(decoder.arch, dtype=jnp.bfloat16)
    hidden = jax.jit(low.forward)(params, *packed(np.arange(32))).hidden
    logits = jax.jit(low.head)(params, hidden)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    exact = jax.jit(decoder.head)(params, jax.jit(decoder.forward)(params, *packed(np.arange(32))).hidden)
    logits, exact = np.asarray(logits), np.asarray(exact)
    assert np.abs(logits - exact)[0, :28].mean() < 0.05 * np.abs(exact)[0, :28].mean()
    # A bfloat16 product would be a multiple of 2^-8 of its size; accumulated in float32 it is not.
    assert np.any(logits != logits.astype(jnp.bfloat16).astype(np.float32))


def test_program_does_not_grow_with_depth():
    def size(depth):
        decoder = Decoder(read("gemma2", num_hidden_layers=depth, head_dim=8))
        loss = lambda p: decoder.forward(p, *packed(np.arange(32))).hidden.sum()
        return len(jax.jit(jax.grad(loss)).lower(decoder.abstract_params()).as_text().splitlines())

    assert size(32) == size(4)


def test_remat_keeps_less_for_the_backward_pass():
    def kept(remat):
        decoder = Decoder(read("llama", num_hidden_layers=8), remat=remat)
        pull = lambda p: jax.vjp(lambda p: decoder.forward(p, *packed(np.arange(32))).hidden, p)[1]
        residuals = jax.tree.leaves(jax.eval_shape(pull, decoder.abstract_params()))
        return [r.shape for r in residuals if len(r.shape) == 4 and r.shape[:3] == (8, 1, 32)]  # [layers, B, T, ...]

    assert kept("block") == [(8, 1, 32, 32)]  # the layers' inputs
    assert 1 < len(kept("dots")) < len(kept("none"))


def test_parameters_and_axes_agree():
    for family in ("qwen2", "qwen3", "gemma3_text"):
        decoder = Decoder(read(family, head_dim=8))
        shapes, axes = decoder.abstract_params(jnp.bfloat16), decoder.logical_axes()
        is_axes = lambda x: isinstance(x, tuple)
        pairs = jax.tree.map(lambda a, s: (len(a), s.ndim, s.dtype), axes, shapes, is_leaf=is_axes)
        assert all(a == n and d == jnp.bfloat16 for a, n, d in jax.tree.leaves(pairs, is_leaf=is_axes))
        assert axes["stacks"]["0"]["0"]["attn"]["k_proj"]["kernel"] == ("layers", "embed", "kv_heads")
