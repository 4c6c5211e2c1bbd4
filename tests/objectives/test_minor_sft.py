"""MinorSFT against the values of its derivation, plain SFT at its limit, and finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sft import bind, make_examples, pack

from jaxsft.config import ObjectiveConfig
from jaxsft.data.batch import Batch
from jaxsft.errors import UserError
from jaxsft.objectives.minor_sft import MinorSFT, closed_form, sample_weights
from jaxsft.objectives.objective import ModelOutput
from jaxsft.objectives.registry import make_objective
from jaxsft.objectives.sft import SFT
from jaxsft.objectives.terms import ratio, total

LOG_PROBS = np.array([-1, -2, -0.5, -0.2, -0.4])  # of two examples in one row, of three and two targets
REFERENCE = np.array([-1.5 - 2.5 - 1.0, -0.1 - 0.1])
# beta: sample weights, loss as a weighted mean, in closed form, and the gradient by each log-probability
GOLDEN = {
    1e-6: ((1, 1), 0.733333, -0.150000, (-0.166667, -0.250000)),
    0.04: ((0.970009, 1.008000), 0.717039, -0.145851, (-0.161668, -0.252000)),
    0.1: ((0.925140, 1.019997), 0.692665, -0.139634, (-0.154190, -0.254999)),
    0.5: ((0.641643, 1.099668), 0.539242, -0.099192, (-0.106940, -0.274917)),
    50.0: ((0, 2), 0.300000, 0.188448, (0, -0.500000)),
}


def golden_batch(copies: int = 1) -> Batch:
    ids = np.tile(np.array([[1, 1, 1, 2, 2, 0]], np.int32), (copies, 1))
    zeros = np.zeros_like(ids)
    weights = (ids > 0).astype(np.float32)
    extras = {
        "example_index": np.tile(np.array([[0, 1]], np.int32), (copies, 1)),
        "reference_0": np.tile(REFERENCE, (copies, 1)),
    }
    return Batch(zeros, zeros, ids, ids, zeros, weights, extras)


def two_way(log_probs):
    """A model of two tokens that gives the target (token 0) these log-probabilities; logits are hidden states."""
    odds = log_probs - jnp.log1p(-jnp.exp(log_probs))
    hidden = jnp.zeros((1, 6, 2)).at[0, :5, 0].set(odds)
    return lambda batch: ModelOutput(jnp.tile(hidden, (len(batch.tokens), 1, 1)), lambda scale, h: h * scale, 1.0)


def loss(objective, model, batch):
    terms, sums = objective(model, batch, objective.denominators(batch))
    return total(terms), objective.metrics(sums)


@pytest.mark.parametrize("beta", GOLDEN)
@pytest.mark.parametrize("form", ["weight", "closed"])
def test_golden_values(beta, form):
    weights, weighted, closed, slopes = GOLDEN[beta]
    with jax.enable_x64(True):
        objective, batch = MinorSFT(beta, form=form), golden_batch()
        run = lambda log_probs: loss(objective, two_way(log_probs), batch)
        (value, metrics), slope = jax.value_and_grad(run, has_aux=True)(jnp.asarray(LOG_PROBS))
        np.testing.assert_allclose(value, weighted if form == "weight" else closed, atol=1e-6)
        np.testing.assert_allclose(slope, np.repeat(slopes, [3, 2]), atol=1e-6)
        np.testing.assert_allclose(sample_weights(jnp.array([1.5, -0.4]), beta), weights, atol=1e-6)
        np.testing.assert_allclose(metrics["deviation"], 0.15, atol=1e-7)  # 0.22 would be the mean over tokens
        np.testing.assert_allclose(metrics["sample_weight"], np.mean(weights), atol=1e-6)
        np.testing.assert_allclose(metrics["nll"], 0.82, atol=1e-7)


def test_a_weight_that_is_differentiated_fails_the_golden_gradient():
    """The forbidden form: its gradient is another."""

    def wrong(log_probs):
        log_ratio = jnp.array([log_probs[:3].sum(), log_probs[3:].sum()]) - REFERENCE
        means = -jnp.array([log_probs[:3].mean(), log_probs[3:].mean()])
        return jnp.mean(sample_weights(log_ratio, 0.5) * means)

    slope = jax.grad(wrong)(jnp.asarray(LOG_PROBS))
    assert abs(slope[0] - GOLDEN[0.5][3][0]) > 0.05


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in (("embed", (13, 5)), ("kernel", (5, 13)))}


def random_batch(seed: int = 0, plain: bool = False, shift: float = 0.0) -> Batch:
    """Examples of which each has weights of its own, all 1 if `plain`; the reference is drawn."""
    examples = make_examples(seed=seed)
    batch = pack([examples[:3], examples[3:6], examples[6:]])
    scale = 1 if plain else 0.5 + batch.example_ids
    batch = dataclasses.replace(batch, weights=(scale * (batch.weights > 0)).astype(np.float32))
    rng = np.random.default_rng(seed)
    lengths = np.stack([(batch.example_ids == slot + 1).sum(axis=1) for slot in range(batch.num_slots)], axis=1)
    reference = -2.5 * lengths + rng.normal(size=lengths.shape) + shift
    return dataclasses.replace(batch, extras=batch.extras | {"reference_0": reference})


def test_beta_zero_is_sft_with_a_mean_over_examples(params):
    batch = random_batch(plain=True)
    both = [
        jax.value_and_grad(lambda p, o=objective: loss(o, bind(p), batch)[0])(params)
        for objective in (MinorSFT(0.0), SFT("example_mean"))
    ]
    (minor, minor_slopes), (sft, sft_slopes) = both
    assert minor == sft
    for name in params:
        np.testing.assert_allclose(minor_slopes[name], sft_slopes[name], rtol=1e-5, atol=1e-7)


def test_where_the_reference_agrees_it_is_sft_at_any_beta(params):
    batch = random_batch(plain=True)
    tokens = {}

    def own(model_params):
        return loss(SFT("example_mean"), bind(model_params), batch)

    def sums(p):
        output = bind(p)(batch)
        log_p = jax.nn.log_softmax(output.head(output.head_params, output.hidden))
        chosen = jnp.take_along_axis(log_p, jnp.asarray(batch.targets)[..., None], axis=-1)[..., 0]
        chosen = chosen * (batch.weights != 0)
        return jnp.stack([(chosen * (batch.example_ids == s + 1)).sum(1) for s in range(batch.num_slots)], axis=1)

    tokens = dataclasses.replace(batch, extras=batch.extras | {"reference_0": sums(params)})
    value, metrics = loss(MinorSFT(3.0), bind(params), tokens)
    np.testing.assert_allclose(value, own(params)[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["sample_weight"], 1, rtol=1e-5)
    np.testing.assert_allclose(metrics["deviation"], 0, atol=1e-6)


@pytest.mark.parametrize("mean", ["sum", "mean"])
def test_both_forms_have_one_gradient_which_finite_differences_confirm(params, mean):
    with jax.enable_x64(True):
        batch = random_batch()
        batch = dataclasses.replace(batch, weights=batch.weights.astype(np.float64))
        run = lambda form: jax.grad(lambda p: loss(MinorSFT(0.7, mean, form), bind(p), batch)[0])(params)
        weight, closed = run("weight"), run("closed")
        for name in params:
            np.testing.assert_allclose(weight[name], closed[name], rtol=1e-9, atol=1e-12)
        value = lambda p: loss(MinorSFT(0.7, mean, "closed"), bind(p), batch)[0]
        rng = np.random.default_rng(1)
        direction = {name: rng.normal(size=x.shape) for name, x in params.items()}
        move = lambda h: value({name: params[name] + h * direction[name] for name in params})
        slope = sum(float((weight[name] * direction[name]).sum()) for name in params)
        np.testing.assert_allclose((move(1e-5) - move(-1e-5)) / 2e-5, slope, rtol=1e-7)


def test_the_weight_of_an_example_counts_outside(params):
    """Doubling the loss weights of one example doubles its share, and leaves its sample weight alone."""
    batch = random_batch(plain=True)
    doubled = np.where(batch.example_ids == 1, 2.0, 1.0).astype(np.float32) * batch.weights
    heavy = dataclasses.replace(batch, weights=doubled)
    value = lambda b: loss(MinorSFT(0.3), bind(params), b)[0] * MinorSFT(0.3).denominators(b)["minor_sft"]
    only = dataclasses.replace(batch, weights=batch.weights * (batch.example_ids == 1))
    np.testing.assert_allclose(value(heavy), value(batch) + value(only), rtol=1e-5)
    metrics = [loss(MinorSFT(0.3), bind(params), b)[1]["sample_weight"] for b in (batch, heavy)]
    np.testing.assert_allclose(*metrics, rtol=1e-6)


def test_a_constant_on_both_sides_changes_nothing_and_copies_neither():
    one, two = golden_batch(), golden_batch(copies=2)
    for batch in (one, two):
        value, metrics = loss(MinorSFT(0.1), two_way(jnp.asarray(LOG_PROBS)), batch)
        np.testing.assert_allclose(value, GOLDEN[0.1][1], rtol=1e-5)
        np.testing.assert_allclose(metrics["deviation"], 0.15, rtol=1e-5)
    lower = jnp.asarray(LOG_PROBS) - 0.7
    shifted = dataclasses.replace(one, extras=one.extras | {"reference_0": REFERENCE - 0.7 * np.array([3, 2])})
    slopes = [
        jax.grad(lambda log_probs, b=batch: loss(MinorSFT(0.1), two_way(log_probs), b)[0])(start)
        for batch, start in ((one, jnp.asarray(LOG_PROBS)), (shifted, lower))
    ]
    np.testing.assert_allclose(*slopes, rtol=1e-5)


def test_extreme_log_ratios_are_finite_and_examples_without_target_count_nothing(params):
    batch = random_batch(shift=-3e4)
    for beta, form in ((5.0, "weight"), (5.0, "closed")):
        value, slopes = jax.value_and_grad(lambda p: loss(MinorSFT(beta, form=form), bind(p), batch)[0])(params)  # noqa: B023
        assert np.isfinite(value)
        assert all(np.isfinite(slope).all() for slope in slopes.values())
    np.testing.assert_allclose(sample_weights(jnp.array([-1e5, 1e5]), 1.0), [2, 0])
    assert closed_form(jnp.array([1.0]), jnp.array([0.0]), 0.5) == 0
    empty = dataclasses.replace(batch, weights=np.zeros_like(batch.weights))
    assert loss(MinorSFT(0.1), bind(params), empty)[0] == 0
    assert ratio(jnp.ones(()), jnp.zeros(())) == 0


def test_beta_must_be_said():
    with pytest.raises(UserError, match=r"config\.objective\.beta is not set.*docs/methods/minor_sft\.md"):
        make_objective(ObjectiveConfig("minor_sft"))
    with pytest.raises(UserError, match="no closed form"):
        make_objective(ObjectiveConfig("minor_sft", beta=0.0, form="closed"))
    assert make_objective(ObjectiveConfig("minor_sft", beta=0.1)) == MinorSFT(0.1)
