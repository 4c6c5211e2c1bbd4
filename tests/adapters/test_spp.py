"""SPP against its equation in the dense form, and what it is for: zeros that stay."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.method import Parts
from jaxsft.adapters.registry import make_method
from jaxsft.adapters.spp import SPP, SPPNode, weighed_product
from jaxsft.config import AdapterConfig, MeshConfig, SPPConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.decoder import Decoder
from jaxsft.models.projection import Context
from jaxsft.models.quantized import quantize
from jaxsft.sharding import make_mesh
from jaxsft.training.program import build, parameter_count
from tests import tiny
from tests.tiny import LLAMA, llama, make_batch, on_device, packed_rows, random_examples

ARCH = llama()
DECODER = Decoder(ARCH)
TOKENS = np.random.default_rng(0).integers(1, 64, (2, 12)).astype(np.int32)
logits = functools.partial(tiny.logits, DECODER, TOKENS)
EVERYWHERE = ("embed", "head", "layers.*.attn.*_proj", "layers.*.mlp.*_proj")


def pruned(params):
    """Two of every four consecutive inputs of every matrix are zero, at random."""
    rng = np.random.default_rng(5)

    def prune(path, leaf):
        if path[-1] not in ("kernel", "embedding"):
            return leaf
        order = rng.random((*leaf.shape[:-2], leaf.shape[-2] // 4, 4, leaf.shape[-1])).argsort(-2)
        return leaf * (order < 2).reshape(leaf.shape)

    return layout.map_leaves(prune, params)


@pytest.fixture(scope="module")
def base():
    return pruned(DECODER.init(jax.random.key(0)))


def fresh(base, **fields) -> tuple[SPP, Parts]:
    method = SPP(SPPConfig(**{"rank": 4, "targets": EVERYWHERE} | fields), ARCH)
    return method, method.split(base, jax.random.key(1))


def trained(base, **fields) -> tuple[SPP, Parts]:
    method, parts = fresh(base, **fields)
    rng = np.random.default_rng(0)
    return method, parts._replace(
        params=jax.tree.map(lambda p: jnp.asarray(0.4 * rng.normal(size=p.shape), jnp.float32), parts.params)
    )


def weights(tree):
    return {name: np.asarray(leaf) for name, leaf in layout.unstack(ARCH, tree).items() if leaf.ndim == 2}


def test_a_fresh_adapter_is_the_base_bit_for_bit(base):
    method, parts = fresh(base)
    np.testing.assert_array_equal(logits(*method.compose(parts, {})), logits(base, None))
    merged = method.merge(parts)
    for path, kernel in layout.leaves(merged):
        np.testing.assert_array_equal(kernel, layout.get(base, path))


def test_merged_is_unmerged(base):
    """In float64, where what is left of a difference is an error and not rounding; the embedding and the head too."""
    method, parts = trained(base)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), parts)
        unmerged = logits(*method.compose(wide, {}))
        merged = logits(method.merge(wide), None)
        plain = logits(wide.frozen["base"], None)
    assert merged.dtype == np.float64
    np.testing.assert_allclose(merged, unmerged, rtol=0, atol=1e-11)
    assert np.abs(unmerged - plain).max() > 1


def test_merge_by_hand(base):
    """W (1 + s A[floor(o r / out), i] b[o]), number by number; and zeros stay."""
    method, parts = trained(base, scale=0.7)
    old, new = weights(base), weights(method.merge(parts))
    adapters = layout.unstack(ARCH, parts.params)
    rng = np.random.default_rng(1)
    for name, kernel in old.items():
        module = name.rpartition(".")[0]
        a, b = (np.float64(adapters[f"{module}.spp_{x}"]) for x in "ab")
        for _ in range(40):
            i, o = (int(rng.integers(n)) for n in kernel.shape)
            want = float(kernel[i, o]) * (1 + 0.7 * a[o * 4 // kernel.shape[1], i] * b[o])
            assert new[name][i, o] == pytest.approx(want, rel=1e-5, abs=1e-7), (name, i, o)
        np.testing.assert_array_equal(new[name] != 0, kernel != 0)


@pytest.mark.parametrize("tokens", [2, 200], ids=["inputs are weighed", "the kernel is weighed"])
def test_gradients_are_those_of_the_dense_form(tokens):
    rng = np.random.default_rng(0)
    shapes = {"x": (tokens, 8), "kernel": (8, 12), "a": (4, 8), "b": (12,), "cotangent": (tokens, 12)}
    with jax.enable_x64(True):
        v = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
        v["kernel"] *= rng.random((8, 12)) < 0.5

        def block_form(x, a, b):
            y, report = SPPNode(a, b, 1.3).project(x, v["kernel"], Context())
            assert report == {}
            return jnp.sum(y * v["cotangent"])

        def dense_form(x, a, b):
            repeated = jnp.repeat(a, 3, axis=0).T
            return jnp.sum((x @ (v["kernel"] * (1 + 1.3 * repeated * b))) * v["cotangent"])

        arguments = (v["x"], v["a"], v["b"])
        np.testing.assert_allclose(block_form(*arguments), dense_form(*arguments), rtol=1e-12)
        ours, theirs = (jax.grad(f, argnums=(0, 1, 2))(*arguments) for f in (block_form, dense_form))
        for one, other in zip(ours, theirs):
            assert np.abs(other).max() > 0.1
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_neither_the_repeated_matrix_nor_many_inputs_are_kept():
    """Of the forward pass the backward pass is handed arrays of the sizes of x, W and A alone."""
    x, kernel, a = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((512, 64), (64, 96), (8, 64)))
    kept = jax.eval_shape(lambda *v: jax.vjp(lambda *v: weighed_product(*v, jnp.float32), *v)[1], x, kernel, a)
    assert {leaf.size for leaf in jax.tree.leaves(kept)} <= {512 * 64, 64 * 96, 8 * 64}
    largest = max(
        int(np.prod(eqn.outvars[0].aval.shape))
        for jaxpr in [jax.make_jaxpr(lambda *v: weighed_product(*v, jnp.float32))(x, kernel, a)]
        for remat in jaxpr.eqns
        for eqn in (remat.params["jaxpr"].eqns if "jaxpr" in remat.params else [remat])
    )
    assert largest == 512 * 96, "an input for each row of A would be 8 * 512 * 64 numbers"


def test_wide_output_and_lookup():
    rng = np.random.default_rng(0)
    kernel, a, b = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((8, 12), (4, 8), (12,)))
    y, _ = SPPNode(a, b, 1.0).project(jnp.ones((3, 8), jnp.bfloat16), kernel, Context(out_dtype=jnp.float32))
    assert y.dtype == jnp.float32
    ids = jnp.array([[1, 7, 1]])
    kernel, a, b = (x.astype(jnp.float32) for x in (kernel, a, b))
    y, _ = SPPNode(a, b, 0.5).project(ids, kernel, Context())
    np.testing.assert_allclose(y, (kernel * (1 + 0.5 * jnp.repeat(a, 3, axis=0).T * b))[ids], rtol=1e-5)


def test_a_rank_that_does_not_divide_is_refused(base):
    config = TrainConfig(adapter=AdapterConfig("spp", spp=SPPConfig(rank=5)))
    method = make_method(config, ARCH, 1)
    with pytest.raises(UserError, match=r"config\.adapter\.spp\.rank is 5, which does not divide the \d+ outputs"):
        jax.eval_shape(lambda base: method.split(base, jax.random.key(0)), base)


def test_trained_numbers_of_llama_7b():
    """r in + out of each of seven maps, 32 layers: 0.29 per cent of the model."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    arch = Architecture.from_hf(LLAMA | sizes | {"num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32000})
    shapes = Decoder(arch).abstract_params()
    parts = jax.eval_shape(lambda base: SPP(SPPConfig(), arch).split(base, jax.random.key(0)), shapes)
    layer = 4 * (16 * 4096 + 4096) + 2 * (16 * 4096 + 11008) + (16 * 11008 + 4096)
    assert parameter_count(parts.params) == 32 * layer == 19_578_880
    assert parameter_count(parts.params) / parameter_count(shapes) == pytest.approx(0.0029, abs=5e-5)


def test_zeros_are_bit_equal_after_training(base):
    """Six steps with a high learning rate move every weight that is there, and no other; 2:4 stays 2:4."""
    config = TrainConfig(batch_size=8, adapter=AdapterConfig("spp", spp=SPPConfig(rank=4)))
    config.optimizer.learning_rate = 5e-2
    batch = make_batch(packed_rows(random_examples(16, 20), 8, 64), 64, 12)
    program = build(config, ARCH, make_mesh(MeshConfig(), jax.devices()[:1]), 10, batch)
    state, frozen = program.initial(jax.tree.map(jnp.copy, base))
    for _ in range(6):
        state, _ = program.step(state, frozen, on_device(batch))
    merged = weights(program.method.merge(frozen.parts(state.params, state.aux["method"])))
    for name, kernel in weights(base).items():
        targeted = name.startswith("layers.")
        np.testing.assert_array_equal(merged[name] != 0, kernel != 0)
        assert targeted == bool(np.mean((merged[name] != kernel)[kernel != 0]) > 0.99), name
        in_four = (merged[name] != 0).reshape(-1, 4, kernel.shape[1]).sum(1)
        assert in_four.max() == 2


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_over_a_quantised_base(base, kind):
    """The adapter multiplies the dequantised weights; what was pruned is zero there too, and merged."""
    rng = np.random.default_rng(0)
    plain = layout.get(base, ("stacks", "0", "0", "mlp", "up_proj", "kernel"))[0]
    kernel = quantize(plain, kind, double=True)
    x, a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, 32), (4, 32), (48,)))
    y, _ = SPPNode(a, b, 1.3).project(x, kernel, Context())
    merged = SPP(SPPConfig(4, 1.3), ARCH).merged(kernel, {"spp_a": a, "spp_b": b})
    np.testing.assert_allclose(y, x @ merged, rtol=1e-4, atol=1e-4)
    assert merged.dtype == plain.dtype and not np.any((merged != 0) & (plain == 0))
    assert np.mean((merged != 0) == (plain != 0)) > 0.9


def test_axes_are_those_of_the_kernels_sides(base):
    method, parts = fresh(base)
    axes = method.axes(Decoder(ARCH).logical_axes())
    block = axes.params["stacks"]["0"]["0"]
    assert block["attn"]["k_proj"] == {"spp_a": ("layers", "rank", "embed"), "spp_b": ("layers", "kv_heads")}
    assert axes.params["head"] == {"spp_a": ("rank", "embed"), "spp_b": ("vocab",)}
    for path, leaf in layout.leaves(parts.params):
        assert len(layout.get(axes.params, path)) == leaf.ndim


def test_dropout_acts_on_the_update_alone():
    rng = np.random.default_rng(0)
    x, kernel, a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4, 8), (8, 12), (4, 8), (12,)))
    ctx = Context(key=jax.random.key(0), train=True)
    run = lambda rate, b, ctx: np.asarray(SPPNode(a, b, 1.0, rate).project(x, kernel, ctx)[0])
    np.testing.assert_array_equal(run(0.5, 0 * b, ctx), x @ kernel)
    assert np.abs(run(0.5, b, ctx) - run(0.0, b, ctx)).max() > 0.1
    np.testing.assert_array_equal(run(0.5, b, dataclasses.replace(ctx, train=False)), run(0.0, b, ctx))
