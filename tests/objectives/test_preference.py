"""The losses on pairs against closed forms, log-softmax by hand, and finite differences in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from pairs import VOCAB, bind, one_reference, pairs, params_of
from reference import head

from jaxsft.adapters.lora import LoRA
from jaxsft.config import LoRAConfig, ObjectiveConfig
from jaxsft.errors import UserError
from jaxsft.models.decoder import Decoder
from jaxsft.objectives.mrpo import MRPO
from jaxsft.objectives.preference import DPO, IPO, Hinge, MinorDPO, preference_loss
from jaxsft.objectives.registry import make_objective
from jaxsft.objectives.terms import total
from jaxsft.training.step import BoundModel
from tests.tiny import llama, make_batch, on_device, random_examples

# --- the functions


@pytest.mark.parametrize(
    ("chosen", "rejected", "dpo", "minor_dpo"),
    [(0.5, 1.0, 0.718460, 0.718460), (0.5, -2.0, 0.575939, 0.668460), (0.0, 0.0, np.log(2), np.log(2))],
)
def test_golden_values(chosen, rejected, dpo, minor_dpo):
    assert preference_loss(chosen, rejected, 0.1) == pytest.approx(dpo, abs=1e-6)
    assert preference_loss(chosen, rejected, 0.1, "minor_dpo") == pytest.approx(minor_dpo, abs=1e-6)


def test_closed_forms():
    chosen, rejected, beta = np.array([1.2, -3.0, 0.4]), np.array([-0.7, 2.0, 0.9]), 0.3
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    z = beta * (chosen - rejected)
    loss = lambda **options: preference_loss(chosen, rejected, beta, **options)
    np.testing.assert_allclose(loss(), -np.log(sigmoid(z)), rtol=1e-6)
    smoothed = -0.9 * np.log(sigmoid(z)) - 0.1 * np.log(sigmoid(-z))
    np.testing.assert_allclose(loss(label_smoothing=0.1), smoothed, rtol=1e-6)
    np.testing.assert_allclose(loss(kind="ipo"), (chosen - rejected - 1 / 0.6) ** 2, rtol=1e-6)
    swapped = preference_loss(rejected, chosen, beta)
    np.testing.assert_allclose(loss() - swapped, -z, rtol=1e-6)  # log sigma(z) - log sigma(-z) = z
    np.testing.assert_allclose(loss(kind="hinge"), np.maximum(1 - z, 0), rtol=1e-6)
    with pytest.raises(ValueError, match="sigmoid"):
        loss(kind="sigmoid")


def test_what_openbezoar_and_spin_count_on():
    """A margin of 5 nats at beta 0.1; and what both answers gain alike does not count."""
    assert preference_loss(5.0, 0.0, 0.1) == pytest.approx(0.4740770, abs=1e-7)
    for kind in ("dpo", "ipo", "hinge"):
        alike = [preference_loss(1.5 + gain, -2.0 + gain, 0.3, kind) for gain in (0.0, 4.0, -4.0)]
        np.testing.assert_allclose(alike, alike[0], rtol=1e-6)
    slope = jax.grad(preference_loss, (0, 1))
    assert slope(4.0, -7.0, 0.1, "hinge") == (0, 0), "beyond its margin the hinge is at rest"
    np.testing.assert_allclose(slope(4.0, -5.0, 0.1, "hinge"), (-0.1, 0.1), rtol=1e-6)


def test_spin_is_dpo_on_own_answers():
    """Chen et al. 2024: l(lambda log p(y)/p_t(y) - lambda log p(y')/p_t(y')), l the logistic loss."""
    human, opponent_human, own, opponent_own = -12.0, -15.0, -9.0, -8.0
    spin = np.log(1 + np.exp(-(0.1 * (human - opponent_human) - 0.1 * (own - opponent_own))))
    assert preference_loss(human - opponent_human, own - opponent_own, 0.1) == pytest.approx(spin, rel=1e-6)


def test_the_gate_of_minor_dpo():
    """d/dr_l is beta sigma(-z) from 0 on, and nothing below; at 0, where training starts, it is DPO's."""
    slope = jax.grad(lambda rejected: preference_loss(0.5, rejected, 0.1, "minor_dpo"))
    at = lambda z: 0.1 / (1 + np.exp(z))
    assert slope(0.0) == pytest.approx(at(0.05), rel=1e-6)
    assert slope(2.0) == pytest.approx(at(-0.15), rel=1e-6)
    assert slope(-1e-6) == 0
    both = [jax.grad(preference_loss, (0, 1))(0.0, 0.0, 0.1, kind) for kind in ("dpo", "minor_dpo")]
    assert both[0] == both[1]
    assert both[0] == (pytest.approx(-0.05), pytest.approx(0.05))


def test_far_ratios_are_finite():
    for kind in ("dpo", "minor_dpo", "ipo", "hinge"):
        far = jnp.array([-1e4, 1e4])
        value, slopes = jax.value_and_grad(lambda r, k=kind: preference_loss(r, -r, 0.5, k).sum())(far)
        assert np.isfinite(value)
        assert np.isfinite(slopes).all()


# --- the objectives


def run(objective, batch, params):
    terms, sums = objective(bind(params), batch, objective.denominators(batch))
    return total(terms), sums


def by_hand(batch, examples, params):
    """Log-probability and number of targets of every example, in NumPy, and its references."""
    sums, counts = [], []
    for tokens, weights in examples:
        z = 5 * np.tanh(params["embed"][tokens[:-1]] @ params["kernel"] / 5)
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        own = log_p[np.arange(len(tokens) - 1), tokens[1:]]
        sums.append((own * (weights[1:] != 0)).sum())
        counts.append((weights[1:] != 0).sum())
    filled = batch.extras["example_index"] >= 0
    references = [batch.extras[f"reference_{k}"][filled] for k in range(2)]
    return np.array(sums), np.array(counts), references


sides = lambda values: (values[::2], values[1::2])


@pytest.mark.parametrize("ratio", ["sum", "mean"])
def test_objectives_by_hand(ratio):
    batch, examples = pairs()
    params = params_of()
    sums, counts, (reference, _) = by_hand(batch, examples, params)
    scale = counts if ratio == "mean" else 1
    (won, lost), (won_free, lost_free) = sides((sums - reference) / scale), sides(sums / scale)
    assert (lost > 0).any()
    assert (lost < 0).any()  # both sides of the gate
    nll = -sides(sums)[0].sum() / sides(counts)[0].sum()
    logistic = lambda z: np.log1p(np.exp(-z))
    want = {
        DPO(0.2, ratio): logistic(0.2 * (won - lost)).mean(),
        DPO(0.2, ratio, sft_weight=0.5): logistic(0.2 * (won - lost)).mean() + 0.5 * nll,
        DPO(0.2, ratio, label_smoothing=0.2): (logistic(0.2 * (won - lost)) + 0.2 * 0.2 * (won - lost)).mean(),
        DPO(0.2, ratio, reference_free=True): logistic(0.2 * (won_free - lost_free)).mean(),
        IPO(0.2, ratio): ((won - lost - 2.5) ** 2).mean(),
        IPO(0.2, ratio, reference_free=True): ((won_free - lost_free - 2.5) ** 2).mean(),
        Hinge(0.2, ratio): np.maximum(1 - 0.2 * (won - lost), 0).mean(),
        MinorDPO(0.2, ratio): logistic(0.2 * (won - np.maximum(lost, 0))).mean(),
    }
    for objective, loss in want.items():
        got, metric_sums = run(objective, one_reference(batch), params)
        np.testing.assert_allclose(got, loss, rtol=1e-5, err_msg=str(objective))
        metrics = objective.metrics(metric_sums)
        rewards = (won_free, lost_free) if getattr(objective, "reference_free", False) else (won, lost)
        expected = {
            "rewards/chosen": 0.2 * rewards[0].mean(),
            "rewards/rejected": 0.2 * rewards[1].mean(),
            "rewards/margins": 0.2 * (rewards[0] - rewards[1]).mean(),
            "rewards/accuracies": (rewards[0] > rewards[1]).mean(),
            "logps/chosen": sides(sums)[0].mean(),
            "logps/rejected": sides(sums)[1].mean(),
            "supervised_tokens": sides(counts)[0].sum(),
            "nll": nll,
            "deviation": np.mean(sides((sums - reference) / counts)[0]),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)


OBJECTIVES = [
    DPO(0.2),
    DPO(0.2, "mean", label_smoothing=0.2, sft_weight=0.5),
    DPO(0.2, reference_free=True),
    IPO(0.2),
    Hinge(0.2),
    MinorDPO(0.2),
    MRPO(0.2),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_finite_differences_in_float64(objective):
    with jax.enable_x64(True):
        batch, _ = pairs()
        batch = on_device(batch if isinstance(objective, MRPO) else one_reference(batch))
        loss = jax.jit(lambda params: run(objective, batch, params)[0])
        check_grads(loss, (params_of(np.float64),), 1, ["rev"], rtol=1e-6)


def test_where_training_starts():
    """The model is its own reference: the loss is ln 2, the gradient beta / 2 of the difference of log-likelihoods."""
    batch, examples = pairs()
    params = params_of()
    own = by_hand(batch, examples, params)[0]
    filled = batch.extras["example_index"] >= 0
    batch.extras["reference_0"][filled] = own
    batch = one_reference(batch)

    def margin(params):
        log_p = jax.nn.log_softmax(head({"kernel": params["kernel"]}, params["embed"][batch.tokens]))
        tokens = jnp.take_along_axis(log_p, batch.targets[..., None], -1)[..., 0] * (batch.weights != 0)
        return jnp.sum(tokens * np.where(batch.example_ids % 2 == 1, 1, -1)) / 5

    want = jax.tree.map(lambda g: -0.15 * g, jax.grad(margin)(params))
    for objective in (DPO(0.3), MinorDPO(0.3)):
        loss, grads = jax.value_and_grad(lambda p, o=objective: run(o, batch, p)[0])(params)
        assert loss == pytest.approx(np.log(2), rel=1e-5)
        if isinstance(objective, DPO):  # rounding takes r_l to either side of the gate of the other
            jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-4), grads, want)


def test_equal_answers_teach_nothing():
    examples = [example for example in random_examples(3, 7, VOCAB) for _ in range(2)]
    batch = make_batch([examples], 50, 6)
    batch.extras["member"] = np.arange(6, dtype=np.int32)[None] % 2
    batch.extras["reference_0"] = np.full((1, 6), -9.0)
    for objective in (DPO(0.2), DPO(0.2, label_smoothing=0.3), IPO(0.2)):
        loss, grads = jax.value_and_grad(lambda p, o=objective: run(o, batch, p)[0])(params_of())
        assert loss > 0
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-6


def test_a_batch_of_single_examples_counts_zero():
    batch, _ = pairs()
    batch.extras["member"] = np.minimum(batch.extras["member"], 0)
    loss, grads = jax.value_and_grad(lambda p: run(DPO(0.2), one_reference(batch), p)[0])(params_of())
    assert not any(np.any(x) for x in jax.tree.leaves((loss, grads)))


def test_the_adapter_switched_off_is_the_frozen_copy():
    """Loss and gradient with references asked of the base under the adapter, in the rows of training, and with those of
    a copy that scored each answer in a row of its own."""
    arch = llama(num_hidden_layers=2)
    decoder = Decoder(arch, remat="none")
    base = decoder.init(jax.random.key(1))
    copy = jax.tree.map(np.array, base)
    method = LoRA(LoRAConfig(rank=2), arch)
    parts = method.split(base, jax.random.key(2))
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), parts.params)
    examples = random_examples(4, 12)
    batch = make_batch([examples], 48, 4)
    batch.extras["member"] = np.array([[0, 1, 0, 1]], np.int32)
    single = on_device(make_batch([[example] for example in examples], 12, 1))
    log_p = jax.nn.log_softmax(
        decoder.head(
            decoder.head_params(copy),
            decoder.forward(copy, single.tokens, single.positions, single.segment_ids).hidden,
        )
    )
    scored = jnp.take_along_axis(log_p, single.targets[..., None], -1)[..., 0] * (single.weights != 0)
    cached = dataclasses.replace(batch, extras=batch.extras | {"reference_0": scored.sum(-1)[None]})
    objective = DPO(0.2)

    @jax.jit
    def result(params, batch):
        def loss(params):
            model = BoundModel(decoder, method, parts._replace(params=params), {}, None)
            terms, sums = objective(model, batch, objective.denominators(batch))
            return total(terms), objective.metrics(sums)

        return jax.value_and_grad(loss, has_aux=True)(params)

    online, frozen = (result(moved, on_device(b)) for b in (batch, cached))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), online, frozen)
    assert abs(float(online[0][1]["rewards/margins"])) > 1e-3
    (loss, metrics), _ = result(parts.params, on_device(batch))  # adapters start at zero
    assert float(loss) == pytest.approx(np.log(2), rel=1e-6)
    assert metrics["rewards/chosen"] == metrics["rewards/rejected"] == metrics["deviation"] == 0


# --- what is refused


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ObjectiveConfig("dpo"), r"config\.objective\.beta is None; say how strongly .* \(0\.1 is usual"),
        (ObjectiveConfig("minor_dpo", beta=0.0), r"config\.objective\.beta is 0\.0; say"),
        (ObjectiveConfig("dpo", beta=0.1, label_smoothing=0.5), r"label_smoothing is 0\.5; .* must be below 0\.5"),
        (ObjectiveConfig("mrpo", beta=0.1, label_smoothing=0.6), r"label_smoothing is 0\.6; .* must be below 0\.5"),
        (ObjectiveConfig("minor_dpo", beta=0.1, reference_free=True), r"reference_free is True, which the objective"),
        (ObjectiveConfig("ipo", beta=0.1, reference_clip=0.3), r"reference_clip is 0\.3, which the objective 'ipo'"),
    ],
)
def test_what_cannot_be_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        make_objective(config)


def test_references_that_would_not_be_read_are_refused():
    batch, _ = pairs()
    with pytest.raises(UserError, match=r"names 2 models, of which the objective 'ipo' reads one; .*'mrpo'"):
        run(IPO(0.1), batch, params_of())


def test_who_needs_a_reference():
    needs = lambda name, **fields: make_objective(ObjectiveConfig(name, beta=0.1, **fields)).needs_reference
    assert all(needs(name) for name in ("dpo", "ipo", "minor_dpo", "hinge", "mrpo"))
    assert not needs("dpo", reference_free=True)
    assert not needs("ipo", reference_free=True)
    assert {make_objective(ObjectiveConfig(name, beta=0.1)).grouping for name in ("dpo", "mrpo")} == {"preference"}
