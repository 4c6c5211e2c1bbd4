"""LoRAMoE's experts against the authors' own module, closed forms and plain LoRA; the constraint: test_balance.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.balance import imbalance
from jaxsft.adapters.lora import LoRANode
from jaxsft.adapters.loramoe import LoRAMoE, routing
from jaxsft.adapters.registry import make_method
from jaxsft.config import AdapterConfig, LoRAMoEConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.decoder import Decoder
from jaxsft.models.projection import Context
from jaxsft.training.program import parameter_count
from jaxsft.validation import validate
from tests import tiny
from tests.adapters.routed import GOLDEN, golden_node, node, one_example_rows
from tests.tiny import LLAMA, llama

ARCH = llama()
DECODER = Decoder(ARCH, remat="none")
TOKENS = np.random.default_rng(0).integers(1, 64, (2, 12)).astype(np.int32)
logits = functools.partial(tiny.logits, DECODER, TOKENS)
EVERYWHERE = ("embed", "layers.*.attn.*_proj", "layers.*.mlp.*_proj")


@pytest.fixture(scope="module")
def base():
    return DECODER.init(jax.random.key(0))


def fresh(base, **fields):
    method = LoRAMoE(LoRAMoEConfig(**{"targets": EVERYWHERE} | fields), ARCH)
    return method, method.split(base, jax.random.key(1))


def test_forward_loss_and_gradients_are_the_authors():
    """Recorded from their layer: sum(y) + L of one linear map, three samples of types 0, 1, 0 in one micro-batch."""
    config = LoRAMoEConfig(experts=4, rank=2, alpha=8.0, delta=0.1, beta=0.1, scope="global")
    batch = one_example_rows([5, 5, 5], types=GOLDEN["tt"])
    ctx = Context(example_ids=batch.example_ids, extras=batch.extras)

    def run(adapter):
        y, report = adapter.project(jnp.asarray(GOLDEN["x"]), jnp.asarray(GOLDEN["W"].T), ctx)
        loss = config.beta * imbalance(report["importance"], batch, config, (1, 1, 0, 0))
        return jnp.sum(y) + loss, (y, loss)

    (_, (y, loss)), gradient = jax.value_and_grad(run, has_aux=True)(golden_node(dropout=0.0))
    np.testing.assert_allclose(y, GOLDEN["y"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss, GOLDEN["loss"], rtol=1e-5)
    like = golden_node(GOLDEN["gA"], GOLDEN["gWg"], GOLDEN["gB"])
    for name in ("lora_a", "router", "lora_b"):
        np.testing.assert_allclose(getattr(gradient, name), getattr(like, name), rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_gradient_of_the_constraint_alone_is_in_the_golden_one():
    """Without it the router's gradient is another: the check above would see a constraint that is left out."""
    batch = one_example_rows([5, 5, 5])
    ctx = Context(example_ids=batch.example_ids, extras=batch.extras)
    run = lambda adapter: jnp.sum(adapter.project(jnp.asarray(GOLDEN["x"]), jnp.asarray(GOLDEN["W"].T), ctx)[0])
    router = jax.grad(run)(golden_node(dropout=0.0)).router
    assert np.abs(np.asarray(router) - GOLDEN["gWg"].T).max() > 1e-3


def test_a_fresh_adapter_is_the_base_bit_for_bit(base):
    method, parts = fresh(base)
    params, adapters = method.compose(parts, {})
    np.testing.assert_array_equal(logits(params, adapters), logits(base, None))
    assert np.abs(np.asarray(parts.params["embed"]["router"])).max() > 0


def test_one_expert_is_plain_lora():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 5, 8)), rng.normal(size=(8, 6))
    one = node(1, 3, seed=1, scale=2.5)
    plain = LoRANode(one.lora_a, one.lora_b, 2.5)
    for given in (jnp.asarray(x, jnp.float32), jnp.asarray([[1, 7, 1]])):
        kernel = jnp.asarray(kernel, jnp.float32)
        np.testing.assert_allclose(
            one.project(given, kernel, Context())[0], plain.project(given, kernel, Context())[0], rtol=1e-5, atol=1e-5
        )


def test_identical_experts_are_plain_lora_under_any_router():
    rng = np.random.default_rng(2)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 5, 8), (8, 6)))
    one = node(1, 3, seed=1, scale=2.5)
    alike = dataclasses.replace(
        node(4, 3, seed=1, scale=2.5),
        lora_a=jnp.tile(one.lora_a, (1, 4)),
        lora_b=jnp.tile(one.lora_b, (4, 1)),
    )
    plain = LoRANode(one.lora_a, one.lora_b, 2.5)
    np.testing.assert_allclose(
        alike.project(x, kernel, Context())[0], plain.project(x, kernel, Context())[0], rtol=1e-5, atol=1e-5
    )


def test_experts_by_hand():
    """A sum over experts in float64, of activations and of an embedding's rows."""
    rng = np.random.default_rng(3)
    x, kernel = rng.normal(size=(2, 5, 8)), rng.normal(size=(8, 6))
    routed = node(4, 3, seed=4, scale=0.7)
    a, g, b = (np.asarray(p, np.float64) for p in (routed.lora_a, routed.router, routed.lora_b))

    def by_hand(x):
        z = np.exp(x @ g)
        p = z / z.sum(-1, keepdims=True)
        experts = [p[..., n, None] * (x @ a[:, 3 * n : 3 * n + 3] @ b[3 * n : 3 * n + 3]) for n in range(4)]
        return x @ kernel + 0.7 * sum(experts)

    y, report = routed.project(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), Context())
    np.testing.assert_allclose(y, by_hand(x), rtol=1e-4, atol=1e-5)
    assert report == {}, "nothing to report where tokens are of no example"
    ids = np.array([[1, 7, 1]])
    y, _ = routed.project(jnp.asarray(ids), jnp.asarray(kernel, jnp.float32), Context())
    np.testing.assert_allclose(y, by_hand(np.eye(8))[ids], rtol=1e-4, atol=1e-5)


def test_the_largest_experts_alone():
    z = jnp.asarray([[0.3, -1.0, 2.0, 2.0, 0.1]])
    np.testing.assert_allclose(routing(z, 2), [[0, 0, 0.5, 0.5, 0]], rtol=1e-6)
    e = np.exp(np.array([0.3, 2.0, 2.0]))
    np.testing.assert_allclose(routing(z, 3)[0, [0, 2, 3]], e / e.sum(), rtol=1e-6)
    np.testing.assert_array_equal(routing(z, 5), routing(z))
    ties = routing(jnp.zeros((7, 4)), 3)
    np.testing.assert_array_equal((ties > 0).sum(-1), 3)
    assert routing(z.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("per_expert", [True, False])
def test_dropout(per_expert):
    """Masks differ between experts or are shared; in the mean nothing changes, and the router sees all of x."""
    kernel, x = jnp.zeros((8, 6)), jnp.ones((64, 32, 8))
    routed = node(3, 2, seed=5, scale=1.0)
    routed = dataclasses.replace(routed, router=jnp.zeros((8, 3)), dropout=0.4, per_expert=per_expert)
    routed = dataclasses.replace(
        routed, lora_a=jnp.tile(jnp.eye(8)[:, :2], (1, 3)), lora_b=jnp.tile(jnp.eye(6)[:2], (3, 1))
    )
    batch = one_example_rows([32] * 64)
    ctx = Context(key=jax.random.key(0), train=True, example_ids=batch.example_ids, extras=batch.extras)
    y, report = routed.project(x, kernel, ctx)
    # the first output is the mean over experts of a kept (1 / 0.6) or dropped (0) entry
    steps = set(np.round(np.unique(np.asarray(y[..., 0])) * 0.6 * 3).astype(int).tolist())
    assert steps == ({0, 1, 2, 3} if per_expert else {0, 3})
    assert float(jnp.mean(y[..., :2])) == pytest.approx(1.0, abs=0.02)
    np.testing.assert_allclose(report["importance"][:, 0], 32 / 3, rtol=1e-6)
    calm, _ = routed.project(x, kernel, dataclasses.replace(ctx, train=False))
    np.testing.assert_allclose(calm[..., :2], 1.0, rtol=1e-6)
    gradient = jax.grad(lambda r: jnp.sum(r.project(x, kernel, ctx)[0][..., 0]))(routed)
    lifted = np.asarray(gradient.lora_a).reshape(8, 3, 2)[:, :, 0]
    assert len(set(np.round(lifted[0], 3).tolist())) == (3 if per_expert else 1)


def test_only_the_experts_are_trained(base):
    method, parts = fresh(base, experts=4, rank=2)
    leaves = dict(layout.leaves(parts.params))
    assert {path[-1] for path in leaves} == {"lora_a", "lora_b", "router"}
    held = {id(leaf) for leaf in jax.tree.leaves(base)}
    assert held == {id(leaf) for leaf in jax.tree.leaves(parts.frozen)}, "the base is neither copied nor cast"
    for path, leaf in leaves.items():
        kernel = layout.get(base, (*path[:-1], "embedding" if path[0] == "embed" else "kernel"))
        *lead, fan_in, fan_out = kernel.shape
        shapes = {"lora_a": (fan_in, 8), "router": (fan_in, 4), "lora_b": (8, fan_out)}
        assert leaf.shape == (*lead, *shapes[path[-1]]) and leaf.dtype == jnp.float32
        if path[-1] == "lora_b":
            assert not np.any(leaf)
        else:
            assert 0.9 * fan_in**-0.5 < np.abs(leaf).max() <= fan_in**-0.5
    axes = dict(layout.leaves(method.axes(DECODER.logical_axes()).params))
    assert axes.keys() == leaves.keys()
    assert all(len(axes[path]) == leaf.ndim for path, leaf in leaves.items())


@pytest.mark.parametrize(("experts", "count"), [(6, 38_486_016), (8, 51_314_688)])
def test_parameters_on_llama_2_7b(experts, count):
    """Of the method's own arithmetic; nothing is allocated."""
    seven = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128}
    arch = Architecture.from_hf(LLAMA | seven | heads)
    config = TrainConfig(adapter=AdapterConfig("loramoe", loramoe=LoRAMoEConfig(experts=experts)))
    method = make_method(config, arch, 1)
    parts = jax.eval_shape(lambda p: method.split(p, jax.random.key(0)), Decoder(arch).abstract_params(jnp.bfloat16))
    assert parameter_count(parts.params) == count


def test_the_constraint_is_on_by_default():
    """The released script has delta = beta = 0, which is none."""
    config = LoRAMoEConfig()
    assert (config.experts, config.rank, config.alpha, config.dropout) == (6, 4, 32.0, 0.05)
    assert (config.delta, config.beta, config.form, config.sign) == (0.1, 0.1, "cv_squared", "published")
    assert config.targets == ("layers.*.mlp.*_proj",)
    assert LoRAMoE(config, ARCH).expert_types == (1, 1, 1, 0, 0, 0)


def test_merging_is_refused(base):
    method, parts = fresh(base)
    with pytest.raises(UserError, match="no merged form: their weights depend on every token"):
        method.merge(parts)


def routed_config(**fields) -> TrainConfig:
    config = TrainConfig()
    config.adapter.kind, config.adapter.loramoe = "loramoe", LoRAMoEConfig(**fields)
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experts": 5}, r"loramoe\.experts is 5, which has no halves"),
        ({"expert_types": (1, 0)}, r"expert_types is \(1, 0\) for 6 experts"),
        ({"top_k": 7}, r"top_k is 7, but there are 6 experts"),
        ({"targets": ("layers.*", "head")}, r"targets names the head"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make_method(routed_config(**fields), ARCH, 1)


@pytest.mark.parametrize("scope", ["microbatch", "global"])
def test_what_does_not_add_up_refuses_accumulation(scope):
    config = routed_config(scope=scope)
    validate(config)
    config.accumulate = 2
    with pytest.raises(UserError, match=rf"scope is '{scope}', whose variance does not add up"):
        validate(config)


def test_rows_that_do_not_go_together_are_refused():
    config = routed_config(scope="microbatch", microbatch_rows=3)
    with pytest.raises(UserError, match=r"microbatch_rows is 3, which does not divide the 16 rows"):
        validate(config)
    config = routed_config(tokens="all")
    with pytest.raises(UserError, match=r"tokens is 'all', which counts padding"):
        validate(config)
    config.data.packing = False
    validate(config)


def test_odd_numbers_of_experts_and_more_types():
    assert make_method(routed_config(experts=5, expert_types=(0, 0, 1, 1, 2)), ARCH, 1).expert_types == (0, 0, 1, 1, 2)
    config = routed_config()
    config.data.types.of = {"poems": 2}
    with pytest.raises(UserError, match=r"gives 'poems' the type 2, which no expert has"):
        make_method(config, ARCH, 1)


def test_a_run_without_types_is_told_so():
    method = make_method(routed_config(), ARCH, 1)
    batch = one_example_rows([3])
    assert "treats all experts alike" in method.notices(batch)[0]
    assert not method.notices(one_example_rows([3], types=[1]))
    assert not make_method(routed_config(beta=0.0), ARCH, 1).notices(batch)
