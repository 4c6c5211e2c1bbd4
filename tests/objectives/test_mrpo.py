"""The virtual reference against its definition and the authors' code by hand; what makes MRPO plain DPO."""

import jax.numpy as jnp
import numpy as np
import pytest
from pairs import bind, one_reference, pairs, params_of

from jaxsft.errors import UserError
from jaxsft.objectives.mrpo import MRPO, clip_to_anchor, confidence_weights, virtual_reference
from jaxsft.objectives.preference import DPO
from jaxsft.objectives.terms import total


def loss(objective, batch):
    terms, _ = objective(bind(params_of()), batch, objective.denominators(batch))
    return float(total(terms))


def test_it_is_the_weighted_harmonic_mean():
    rng = np.random.default_rng(0)
    log_probs = rng.uniform(-9, -1, (3, 50))
    weights = rng.dirichlet(np.ones(3), 50).T
    naive = np.log(1 / (weights / np.exp(log_probs)).sum(axis=0))
    got = virtual_reference(jnp.asarray(log_probs), jnp.asarray(weights))
    np.testing.assert_allclose(got, naive, rtol=1e-5)
    assert (got > log_probs.min(axis=0) - 1e-4).all()
    assert (got < log_probs.max(axis=0) + 1e-4).all()
    alike = virtual_reference(jnp.asarray(log_probs), jnp.array([0.2, 0.3, 0.5]))
    np.testing.assert_allclose(alike, -np.log(np.array([0.2, 0.3, 0.5]) @ np.exp(-log_probs)), rtol=1e-5)


def test_improbable_answers_are_finite():
    chosen, rejected = jnp.array([[-1e4], [-9e3]]), jnp.array([[-2e4], [-1e4]])
    weights = confidence_weights(chosen, rejected)
    both = [virtual_reference(x, weights) for x in clip_to_anchor(chosen, rejected, 0.1)]
    assert np.isfinite(both).all()
    nothing = jnp.zeros((2, 1))  # an empty slot
    assert virtual_reference(clip_to_anchor(nothing, nothing, 0.1)[0], confidence_weights(nothing, nothing)) == 0


def test_the_band_around_the_anchor():
    """Anchor -10 and -30; the other -20 and -30: (b_w, b_l) = (-15, -30), so epsilon divides as 1 : 2."""
    chosen, rejected = jnp.array([[-10.0], [-20.0]]), jnp.array([[-30.0], [-3.0]])
    fixed = clip_to_anchor(chosen, rejected, 0.1, adaptive=False)
    np.testing.assert_allclose(fixed, [[[-10], [-11]], [[-30], [-27]]], rtol=1e-6)
    adaptive = clip_to_anchor(chosen, jnp.array([[-30.0], [-30.0]]), 0.3)
    np.testing.assert_allclose(adaptive, [[[-10], [-11]], [[-30], [-30]]], rtol=1e-6)
    other_way = clip_to_anchor(jnp.array([[-30.0], [-30.0]]), jnp.array([[-10.0], [-20.0]]), 0.3)
    np.testing.assert_allclose(other_way[1], [[-10], [-11]], rtol=1e-6)
    inside = clip_to_anchor(chosen, rejected, 1e6, adaptive=False)
    np.testing.assert_array_equal(inside, [chosen, rejected])


def test_weights_are_shares_of_how_far_answers_are_told_apart():
    chosen, rejected = jnp.array([[-10.0], [-20.0], [-5.0]]), jnp.array([[-12.0], [-19.0], [-5.0]])
    weights = confidence_weights(chosen, rejected)
    np.testing.assert_allclose(weights[:, 0], [2 / 3, 1 / 3, 0], atol=1e-6)
    rng = np.random.default_rng(0)
    weights = confidence_weights(*jnp.asarray(rng.normal(size=(2, 4, 100)) * 10.0 ** rng.uniform(-9, 3, (1, 4, 100))))
    assert (weights >= 0).all()
    assert (weights <= 1).all()
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-6)


def authors_code(chosen, rejected, epsilon):
    """The demo of github.com/thaihungle/MRPO by hand, in probabilities, for [anchor, other] log-probabilities.

    There the weight made of the other's gap multiplies 1 / p of the anchor.
    """
    gaps = [abs(chosen[k] - rejected[k]) for k in (0, 1)]
    alpha = gaps[1] / (gaps[0] + gaps[1] + 1e-6)
    b = [abs(0.5 * (x[0] + x[1])) for x in (chosen, rejected)]
    means = []
    for x, own in ((chosen, b[0]), (rejected, b[1])):
        e = epsilon * own / sum(b)
        other = min(max(x[1], (1 + e) * x[0]), (1 - e) * x[0])
        means.append(np.log(1 / (alpha / np.exp(x[0]) + (1 - alpha) / np.exp(other))))
    return means


def test_two_references_as_the_authors_mix_them():
    chosen, rejected = np.array([-6.0, -7.5]), np.array([-8.0, -4.0])
    objective = MRPO(0.1, reference_clip=0.4, swap_weights=True)
    got = objective.reference(jnp.asarray(np.stack([chosen, rejected], axis=-1))[:, None, :])
    np.testing.assert_allclose([x[0, 0] for x in got], authors_code(chosen, rejected, 0.4), rtol=1e-5)
    natural = MRPO(0.1, reference_clip=0.4).reference(jnp.asarray(np.stack([chosen, rejected], axis=-1))[:, None, :])
    assert abs(float(natural[0][0, 0]) - float(got[0][0, 0])) > 0.05
    fixed = [MRPO(0.1, reference_weights=w, swap_weights=s) for w, s in (((0.3, 0.7), True), ((0.7, 0.3), False))]
    batch, _ = pairs()
    assert loss(fixed[0], batch) == loss(fixed[1], batch)


def test_what_makes_it_plain_dpo():
    batch, _ = pairs()
    one = one_reference(batch)
    plain = loss(DPO(0.2), one)
    assert loss(MRPO(0.2), one) == pytest.approx(plain, rel=1e-6)  # one reference
    assert loss(MRPO(0.2, reference_clip=0.0), batch) == pytest.approx(plain, rel=1e-6)  # clipped to the anchor
    assert loss(MRPO(0.2, reference_clip=0.0, adaptive_clip=False), batch) == pytest.approx(plain, rel=1e-6)
    assert abs(loss(MRPO(0.2, reference_clip=0.5), batch) - plain) > 1e-3
    batch.extras["reference_1"] = batch.extras["reference_0"]
    for options in ({}, {"reference_weights": (0.3, 0.7)}, {"swap_weights": True}, {"adaptive_clip": False}):
        assert loss(MRPO(0.2, **options), batch) == pytest.approx(plain, rel=1e-5)
    smoothed = loss(MRPO(0.2, label_smoothing=0.2), batch)
    assert smoothed == pytest.approx(loss(DPO(0.2, label_smoothing=0.2), one), rel=1e-5)


def test_weights_that_cannot_be_are_refused():
    batch, _ = pairs()
    with pytest.raises(UserError, match=r"reference_weights is \(0\.3, 0\.3\); .* their sum is 1"):
        MRPO(0.1, reference_weights=(0.3, 0.3))
    with pytest.raises(UserError, match=r"reference_weights is \(1\.5, -0\.5\)"):
        MRPO(0.1, reference_weights=(1.5, -0.5))
    with pytest.raises(UserError, match=r"reference_weights has 3 numbers, but there are 2 references"):
        loss(MRPO(0.1, reference_weights=(0.3, 0.3, 0.4)), batch)
    with pytest.raises(UserError, match=r"has 2 numbers, but there is 1 reference "):
        loss(MRPO(0.1, reference_weights=(0.3, 0.7)), one_reference(batch))
    with pytest.raises(UserError, match=r"swap_weights is of two references, but config\.reference\.models has 1"):
        loss(MRPO(0.1, swap_weights=True), one_reference(batch))
