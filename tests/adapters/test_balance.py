"""The balancing constraint of LoRAMoE against closed forms, and what it must not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters import balance
from jaxsft.adapters.loramoe import LoRAMoE, routing
from jaxsft.config import LoRAMoEConfig
from jaxsft.models.projection import Context
from tests.adapters.routed import node, one_example_rows
from tests.tiny import llama, make_batch, packed_rows, random_examples

HALVES = {4: (1, 1, 0, 0), 6: (1, 1, 1, 0, 0, 0)}


def constraint(q, types, beta=1.0, **fields) -> float:
    """beta L of importances [B, N] of examples of these types, all in one scope unless said otherwise."""
    q = np.asarray(q, np.float32)
    config = LoRAMoEConfig(**{"experts": q.shape[-1], "scope": "global"} | fields)
    batch = one_example_rows([1] * len(q), types)
    return beta * float(balance.imbalance(jnp.asarray(q)[:, None], batch, config, HALVES[q.shape[-1]]))


@pytest.mark.parametrize(
    ("experts", "rows", "beta", "value"), [(6, 1, 1.0, 0.012), (4, 3, 0.1, 0.00109090909), (4, 1, 0.1, 0.00133333)]
)
@pytest.mark.parametrize("tokens", [1, 500])
def test_a_uniform_router(experts, rows, beta, value, tokens):
    """beta delta^2 M / (M - 1) with M entries, whatever the length and the types."""
    q = np.full((rows, experts), tokens / experts)
    for types in ([1] * rows, [0] * rows, [i % 2 for i in range(rows)]):
        assert constraint(q, types, beta) == pytest.approx(value, rel=1e-5)
    entries = experts * rows
    assert value == pytest.approx(beta * 0.01 * entries / (entries - 1), rel=1e-5)


def test_where_it_is_zero():
    """Experts of the example's type at 0.15, the others at 11/60; mirrored for the other type."""
    low, high = [0.15] * 3, [11 / 60] * 3
    assert constraint([low + high], [1]) < 1e-12
    assert constraint([low + high, high + low], [1, 0]) < 1e-12
    assert constraint([low + high, high + low], [0, 1]) == pytest.approx(0.0427765549, rel=1e-5)
    assert constraint([high + low], [1], sign="attract") < 1e-12
    assert constraint([low + high], [1], sign="attract") > 0.01


def test_scale():
    """Longer examples of the same routing: the ratio of squares stays, the variance over the mean grows with them."""
    q = np.random.default_rng(0).uniform(1, 2, (3, 6))
    for form, factor in (("cv_squared", 1), ("var_over_mean", 7)):
        for scope in ("global", "per_example"):
            once, more = (constraint(k * q, [0, 1, 0], form=form, scope=scope) for k in (1, 7))
            assert more == pytest.approx(factor * once, rel=1e-5)
    assert constraint(q, [0, 1, 0], form="var_over_mean", by_length=True) == pytest.approx(
        constraint(7 * q, [0, 1, 0], form="var_over_mean", by_length=True), rel=1e-5
    )


def test_lengths_add_no_variance_when_divided_out():
    """Uniform routing of examples of unlike lengths is balanced only by length."""
    q = np.array([[1.0] * 6, [5.0] * 6])
    assert constraint(q, [0, 0], delta=0.0) > 0.4
    assert constraint(q, [0, 0], delta=0.0, by_length=True) < 1e-12


@pytest.mark.parametrize(("sign", "first"), [("published", 0.0396), ("attract", -0.0396)])
@pytest.mark.parametrize("tokens", [1, 9])
def test_the_direction_of_the_gradient(sign, first, tokens):
    """At the uniform point, of the logits of one example of type 1: published, its own experts are pushed down."""
    config = LoRAMoEConfig(sign=sign)
    batch = one_example_rows([tokens], [1])

    def loss(z):
        weights = routing(jnp.broadcast_to(z, (1, tokens, 6)))
        q = balance.importance(weights, batch.example_ids, 1)
        return balance.imbalance(q, batch, config, HALVES[6])

    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(6)), [first] * 3 + [-first] * 3, rtol=1e-3)


def test_without_tilt_it_is_plain_balance():
    rng = np.random.default_rng(1)
    q = rng.uniform(1, 2, (2, 6))
    assert constraint(np.full((2, 6), 0.25), [0, 1], delta=0.0) == 0
    assert constraint(q, [0, 1], delta=0.0) == pytest.approx(np.var(q, ddof=1) / np.mean(q) ** 2, rel=1e-5)
    for nothing in ([-1, -1], [2, 7], None):  # no type, types of no expert, data without types
        assert constraint(q, nothing) == pytest.approx(constraint(q, [0, 1], delta=0.0), rel=1e-5)


def test_more_types():
    """Each type has experts of its own: the zero of the third."""
    config = LoRAMoEConfig(experts=3, scope="global")
    q = jnp.asarray([[[1.0, 1.0, 0.9 / 1.1]]])
    found = {t: float(balance.imbalance(q, one_example_rows([1], [t]), config, (0, 1, 2))) for t in (0, 1, 2)}
    assert found[2] < 1e-12 and found[0] == pytest.approx(found[1]) and found[0] > 1e-3


def test_one_entry_has_no_variance():
    config = LoRAMoEConfig(experts=1)
    loss = lambda q: balance.imbalance(q, one_example_rows([3], [1]), config, (1,))
    value, gradient = jax.value_and_grad(loss)(jnp.full((1, 1, 1), 3.0))
    assert value == 0 and gradient == 0


def test_scopes():
    """By hand, in float64, with an empty slot in every row."""
    rng = np.random.default_rng(2)
    q, types = rng.uniform(1, 2, (4, 2, 4)), rng.integers(0, 2, (4, 2))
    batch = make_batch([[(np.ones(2, np.int32), np.ones(2, np.float32))] * 2 for _ in range(4)], 4, 2)
    batch.extras["type"] = types.astype(np.int32)
    for row, slot in ((0, 1), (2, 0), (2, 1), (3, 1)):
        batch.extras["example_index"][row, slot] = -1
    filled = batch.extras["example_index"] >= 0
    z = q * np.where(types[..., None] == np.array([1, 1, 0, 0]), 1.1, 0.9)
    cv = lambda entries: np.var(entries, ddof=1) / np.mean(entries) ** 2
    want = {
        "per_example": [cv(e) for e in z[filled]],
        "global": [cv(z[filled])],
        "microbatch": [cv(z[0:2][filled[0:2]]), cv(z[2:4][filled[2:4]])],
    }
    for scope, values in want.items():
        config = LoRAMoEConfig(experts=4, scope=scope, microbatch_rows=2)
        found = balance.imbalance(jnp.asarray(q, jnp.float32), batch, config, (1, 1, 0, 0))
        assert float(found) == pytest.approx(sum(values), rel=1e-5)
        assert float(balance.scopes(batch, config)) == len(values)
    rows = LoRAMoEConfig(experts=4, scope="microbatch")
    assert float(balance.scopes(batch, rows)) == 3  # one row is empty


def test_packed_importances_are_the_unpacked_ones():
    """Sample by sample, and padding counts only where asked for."""
    examples, rng = random_examples(12, 9), np.random.default_rng(3)
    vectors, kernel = rng.normal(size=(64, 8)), jnp.zeros((8, 6))
    adapter = node(4, 2, seed=0, scale=1.0)

    def of(rows, length, slots, **fields):
        batch = make_batch(rows, length, slots, examples)
        ctx = Context(example_ids=jnp.asarray(batch.example_ids), extras=batch.extras)
        x = jnp.asarray(vectors[batch.tokens], jnp.float32)
        _, report = dataclasses.replace(adapter, **fields).project(x, kernel, ctx)
        index = batch.extras["example_index"]
        return {int(i): q for i, q in zip(index[index >= 0], np.asarray(report["importance"])[index >= 0])}

    packed = of(packed_rows(examples, 3, 40), 40, 7)
    single = of([[e] for e in examples], 9, 1)
    assert packed.keys() == single.keys() == set(range(12))
    for i, q in packed.items():
        np.testing.assert_allclose(q, single[i], rtol=1e-6)
        assert q.sum() == pytest.approx(len(examples[i][0]), rel=1e-5)
    for q in of([[e] for e in examples], 11, 1, padding=True).values():
        assert q.sum() == pytest.approx(11, rel=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_computed_in_float32(dtype):
    """In bfloat16 within a hundredth of the value in float32."""
    rng = np.random.default_rng(4)
    batch = one_example_rows([200] * 8, [1, 0] * 4)
    ctx = Context(example_ids=jnp.asarray(batch.example_ids), extras=batch.extras)
    x = rng.normal(size=(8, 200, 32))
    adapter, kernel = node(6, 4, 5, 8.0, fan_in=32), jnp.zeros((32, 6), dtype)
    method = LoRAMoE(LoRAMoEConfig(), llama())

    def term(dtype):
        y, report = adapter.project(jnp.asarray(x, dtype), kernel.astype(dtype), ctx)
        assert y.dtype == dtype
        reports = [{"embed": report}]
        return method.terms(reports, batch, method.denominators(batch))["balance"]

    found, exact = term(dtype), term(jnp.float32)
    assert found.sum.dtype == jnp.float32
    assert float(found.sum) == pytest.approx(float(exact.sum), rel=1e-2)
    assert float(exact.sum / exact.denominator) > 0.01


def test_several_forward_passes_count_once_and_untargeted_layers_never():
    batch = one_example_rows([4, 4], [1, 0])
    q = jnp.asarray(np.random.default_rng(5).uniform(1, 2, (3, 2, 1, 6)), jnp.float32)
    report = {"stacks": {"0": {"0": {"mlp": {"up_proj": {"importance": q}}}}}}
    method = LoRAMoE(LoRAMoEConfig(targets=("layers.1.mlp.up_proj",), beta=0.5), llama())
    one, two = (method.terms([report] * n, batch, method.denominators(batch))["balance"] for n in (1, 2))
    assert float(one.sum) == pytest.approx(float(two.sum)) and one.coefficient == 0.5 and float(one.denominator) == 2
    want = balance.imbalance(q[1], batch, method.config, HALVES[6])
    assert float(one.sum) == pytest.approx(float(want)) and float(want) > 0
    off = LoRAMoE(LoRAMoEConfig(beta=0.0), llama())
    assert off.terms([report], batch, off.denominators(batch)) == {}
