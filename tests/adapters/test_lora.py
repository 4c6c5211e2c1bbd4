"""LoRA against its equation; PEFT's own numbers are in test_peft.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.lora import LoRA, LoRANode
from jaxsft.adapters.method import Parts
from jaxsft.adapters.registry import make_method
from jaxsft.config import AdapterConfig, LoRAConfig, MeshConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.decoder import Decoder
from jaxsft.models.projection import Context
from jaxsft.sharding import make_mesh
from jaxsft.training.program import abstract_batch, build
from tests import tiny
from tests.tiny import llama

ARCH = llama()
DECODER = Decoder(ARCH, remat="none")
TOKENS = np.random.default_rng(0).integers(1, 64, (2, 12)).astype(np.int32)
logits = functools.partial(tiny.logits, DECODER, TOKENS)
EVERYWHERE = ("embed", "head", "layers.*.attn.*_proj", "layers.*.mlp.*_proj")


@pytest.fixture(scope="module")
def base():
    return DECODER.init(jax.random.key(0))


def fresh(base, **fields) -> tuple[LoRA, Parts]:
    method = LoRA(LoRAConfig(**{"rank": 4, "alpha": 8.0, "targets": EVERYWHERE} | fields), ARCH)
    return method, method.split(base, jax.random.key(1))


def trained(base, **fields) -> tuple[LoRA, Parts]:
    """An adapter whose matrices are not at their start, zero where no layer is targeted."""
    method, parts = fresh(base, **fields)
    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda p: jnp.asarray(0.2 * rng.normal(size=p.shape), jnp.float32), parts.params)
    mask = method.update_mask(noise)
    return method, parts._replace(params=noise if mask is None else jax.tree.map(jnp.multiply, noise, mask))


def test_a_fresh_adapter_is_the_base_bit_for_bit(base):
    method, parts = fresh(base)
    params, adapters = method.compose(parts, {})
    np.testing.assert_array_equal(logits(params, adapters), logits(base, None))
    for path, kernel in layout.leaves(method.merge(parts)):
        np.testing.assert_array_equal(kernel, layout.get(base, path))


def test_merged_is_unmerged(base):
    """In float64, where what is left of a difference is an error and not rounding."""
    method, parts = trained(base, rank=3)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), parts)
        unmerged = logits(*method.compose(wide, {}))
        merged = logits(method.merge(wide), None)
        plain = logits(wide.frozen["base"], None)
    assert merged.dtype == np.float64
    np.testing.assert_allclose(merged, unmerged, rtol=0, atol=1e-11)
    assert np.abs(unmerged - plain).max() > 1


@pytest.mark.parametrize(("rslora", "scale"), [(False, 24 / 9), (True, 24 / 3)])
def test_merge_by_hand(base, rslora, scale):
    """W + s A B with s = alpha / r, or alpha / sqrt(r), in float64."""
    method, parts = trained(base, rank=9, alpha=24.0, rslora=rslora)
    old, new, adapter = (layout.unstack(ARCH, tree) for tree in (base, method.merge(parts), parts.params))
    assert len(adapter) == 2 * (3 * 7 + 2)
    for name, kernel in old.items():
        module = name.rpartition(".")[0]
        want = np.asarray(kernel, np.float64)
        if f"{module}.lora_a" in adapter:
            a, b = (np.asarray(adapter[f"{module}.lora_{x}"], np.float64) for x in "ab")
            want = want + scale * a @ b
        np.testing.assert_allclose(new[name], want, rtol=1e-6, atol=1e-5, err_msg=name)


def test_merge_rounds_once_to_the_bases_dtype(base):
    method, parts = trained(jax.tree.map(lambda p: p.astype(jnp.bfloat16), base), rank=2)
    path = ("stacks", "0", "0", "attn", "q_proj")
    adapter, kernel = layout.get(parts.params, path), layout.get(parts.frozen["base"], (*path, "kernel"))
    merged = layout.get(method.merge(parts), (*path, "kernel"))
    assert merged.dtype == jnp.bfloat16 and adapter["lora_a"].dtype == jnp.float32
    exact = np.float64(kernel) + 4.0 * np.float64(adapter["lora_a"]) @ np.float64(adapter["lora_b"])
    error = np.abs(np.float64(merged) - exact)
    assert np.all(error <= 2.0**-8 * np.abs(exact) * 1.001 + 1e-5), "more than half a unit in the last place"


def test_a_node_by_hand():
    rng = np.random.default_rng(0)
    x, kernel, a, b = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 8), (8, 6), (8, 2), (2, 6)))
    y, report = LoRANode(a, b, 0.5).project(jnp.asarray(x), jnp.asarray(kernel), Context())
    np.testing.assert_allclose(y, x @ kernel + 0.5 * (x @ a @ b), rtol=1e-4, atol=1e-5)
    assert report == {}
    ids = np.array([[1, 7, 1]])
    y, _ = LoRANode(a, b, 0.5).project(jnp.asarray(ids), jnp.asarray(kernel), Context())
    np.testing.assert_allclose(y, (kernel + 0.5 * a @ b)[ids], rtol=1e-4, atol=1e-5)
    wide = Context(out_dtype=jnp.float32)
    y, _ = LoRANode(a, b, 0.5).project(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16), wide)
    assert y.dtype == jnp.float32


def test_start(base):
    """A is uniform within 1 / sqrt(in), another draw for every map and layer; B is zero."""
    _, parts = fresh(base, rank=16)
    arrays, seen = layout.unstack(ARCH, parts.params), []
    for name, array in arrays.items():
        if name.endswith("lora_b"):
            assert not np.any(array)
            continue
        bound = array.shape[0] ** -0.5
        assert np.abs(array).max() <= bound
        assert np.abs(array).max() > 0.95 * bound
        assert np.std(array) == pytest.approx(bound / 3**0.5, rel=0.1)
        assert abs(np.mean(array)) < 0.1 * bound
        seen.append(np.asarray(array).ravel()[:64])
    assert len({tuple(draw) for draw in seen}) == len(seen) == 3 * 7 + 2
    again, other = (LoRA(LoRAConfig(16), ARCH).split(base, jax.random.key(k)).params for k in (1, 2))
    for path, array in layout.leaves(again):
        np.testing.assert_array_equal(array, layout.get(parts.params, path))
        assert path[-1] == "lora_b" or np.all(np.asarray(array) != layout.get(other, path)), path


def test_only_the_adapter_is_trained(base):
    _, parts = fresh(base)
    leaves = dict(layout.leaves(parts.params))
    assert {path[-1] for path in leaves} == {"lora_a", "lora_b"}
    held = {id(leaf) for leaf in jax.tree.leaves(base)}
    assert not held & {id(leaf) for leaf in leaves.values()}
    assert held == {id(leaf) for leaf in jax.tree.leaves(parts.frozen)}, "the base is neither copied nor cast"
    kernel = lambda path: layout.get(base, (*path[:-1], "embedding" if path[0] == "embed" else "kernel"))
    for path, leaf in leaves.items():
        *lead, fan_in, fan_out = kernel(path).shape
        assert leaf.shape == ((*lead, fan_in, 4) if path[-1] == "lora_a" else (*lead, 4, fan_out))
        assert leaf.dtype == jnp.float32


def test_axes_are_those_of_the_kernels_sides(base):
    method, parts = fresh(base)
    axes = method.axes(DECODER.logical_axes())
    assert axes.frozen == {"base": DECODER.logical_axes()}
    block = axes.params["stacks"]["0"]["0"]
    assert block["attn"]["k_proj"] == {"lora_a": ("layers", "embed", "rank"), "lora_b": ("layers", "rank", "kv_heads")}
    assert block["mlp"]["down_proj"] == {"lora_a": ("layers", "mlp", "rank"), "lora_b": ("layers", "rank", "embed")}
    assert axes.params["embed"] == {"lora_a": ("vocab", "rank"), "lora_b": ("rank", "embed")}
    assert axes.params["head"] == {"lora_a": ("embed", "rank"), "lora_b": ("rank", "vocab")}
    for path, leaf in layout.leaves(parts.params):
        assert len(layout.get(axes.params, path)) == leaf.ndim


def test_patterns_choose_layers(base):
    """Targets in some layers of a stack: the others' rows are masked, and merging leaves their kernels alone."""
    method, parts = trained(base, targets=("layers.1.attn.q_proj", "layers.[02].mlp", "head"))
    modules = {".".join(path[3:-1]) or path[0] for path, _ in layout.leaves(parts.params)}
    assert modules == {"attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "head"}
    mask = method.update_mask(parts.params)
    block = mask["stacks"]["0"]["0"]
    for name in ("lora_a", "lora_b"):
        np.testing.assert_array_equal(block["attn"]["q_proj"][name].ravel(), [0, 1, 0])
        np.testing.assert_array_equal(block["mlp"]["up_proj"][name].ravel(), [1, 0, 1])
        assert mask["head"][name]
    old, new = (layout.unstack(ARCH, tree) for tree in (base, method.merge(parts)))
    changed = {name for name in old if np.any(old[name] != new[name])}
    mlps = {f"layers.{i}.mlp.{m}_proj.kernel" for i in (0, 2) for m in ("gate", "up", "down")}
    assert changed == {"layers.1.attn.q_proj.kernel", "head.kernel"} | mlps
    np.testing.assert_allclose(logits(method.merge(parts), None), logits(*method.compose(parts, {})), atol=1e-5)
    assert fresh(base)[0].update_mask(fresh(base)[1].params) is None, "nothing to mask where all layers are targeted"


def config(*targets: str) -> TrainConfig:
    config = TrainConfig()
    config.adapter.kind, config.adapter.lora.targets = "lora", targets
    return config


@pytest.mark.parametrize("targets", [("embed",), ("*",), ("layers.*.attn.*_proj", "emb*")])
def test_a_tied_embedding_is_refused_by_adapters_that_do_not_know_the_head(targets):
    """Merging it would change the head, which the unmerged adapter does not; LoRA adapts both (test_rows.py)."""
    tied, spp = llama(tie_word_embeddings=True), TrainConfig(adapter=AdapterConfig("spp"))
    spp.adapter.spp.targets = targets
    with pytest.raises(UserError, match=r"config\.adapter\.spp\.targets.*embed.*tied"):
        make_method(spp, tied, 1)
    assert make_method(config(*targets), tied, 1).config.targets == targets


@pytest.mark.parametrize(
    ("field", "patterns"),
    [("adapter.lora.targets", ("norm",)), ("adapter.lora.targets", ()), ("optimizer.freeze", ("*",))],
)
def test_nothing_to_train_is_refused(field, patterns):
    settings = config(*(patterns if "lora" in field else ()))
    if "freeze" in field:
        settings.adapter, settings.optimizer.freeze = AdapterConfig(), patterns
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(UserError, match=rf"config\.{field} is \(.*\), which leaves nothing to train"):
        build(settings, ARCH, mesh, 10, abstract_batch(16, 8, 1))


def test_freezing_under_an_adapter_is_refused():
    frozen = dataclasses.replace(config("layers.*"))
    frozen.optimizer.freeze = ("layers.0",)
    with pytest.raises(UserError, match=r"config\.optimizer\.freeze has no effect under an adapter"):
        make_method(frozen, ARCH, 1)
