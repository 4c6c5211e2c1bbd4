"""SFTMix against its equations, written out over pairs and places with full logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsft.objectives import sftmix
from jaxsft.objectives.objective import ModelOutput
from jaxsft.objectives.sft import SFT
from jaxsft.objectives.sftmix import SFTMix, beta, draw_lam, plan_mixture
from jaxsft.objectives.terms import total
from tests.tiny import make_batch, random_examples

LENGTH, SLOTS, WIDTH, VOCAB = 40, 5, 5, 11


class Bound:
    """A model of given hidden states."""

    def __init__(self, hidden, kernel, norm=lambda x: x / 2):
        self.step_key = jax.random.key(3)
        self._output = ModelOutput(
            norm(hidden), lambda w, h: (h @ w).astype(jnp.float32), kernel, unnormed=hidden, norm=norm
        )

    def __call__(self, batch):
        return self._output


@pytest.fixture
def batch():
    """Two pairs and a pair, of ragged lengths and weights, and an empty row."""
    examples = random_examples(6, 9, vocab=VOCAB, seed=2)
    return paired(make_batch([examples[:4], examples[4:], []], LENGTH, SLOTS))


def paired(batch):
    index = batch.extras["example_index"]
    batch.extras["member"] = np.where(index < 0, -1, np.arange(index.shape[1]) % 2).astype(np.int32)
    return batch


@pytest.fixture
def arrays(batch):
    rng = np.random.default_rng(0)
    shape = (*batch.tokens.shape, WIDTH)
    return rng.normal(size=shape).astype(np.float32), rng.normal(size=(WIDTH, VOCAB)).astype(np.float32)


def loss(objective, batch, hidden, kernel):
    terms, _ = objective(Bound(hidden, kernel), batch, objective.denominators(batch))
    return total(terms)


def positions(batch, row, slot):
    """Of the supervised targets of an example."""
    return np.flatnonzero((batch.example_ids[row] == slot + 1) & (batch.weights[row] != 0))


def mixed_losses(batch, lam, states, kernel):
    """Every H(Y~, softmax(head(Z~))), by the equation; `lam(index, place)`."""
    found = []
    for row, slot in np.argwhere(batch.extras["member"] == 0):
        both = positions(batch, row, slot), positions(batch, row, slot + 1)
        for place, (c, u) in enumerate(zip(*both)):
            share = lam(batch.extras["example_index"][row, slot], place)
            logits = (share * states[row, c] + (1 - share) * states[row, u]) @ kernel
            label = share * jax.nn.one_hot(batch.targets[row, c], VOCAB)
            label += (1 - share) * jax.nn.one_hot(batch.targets[row, u], VOCAB)
            found.append(-jnp.sum(label * jax.nn.log_softmax(logits)))
    return jnp.stack(found)


def plain(batch, hidden, kernel):
    log_p = jax.nn.log_softmax(hidden @ kernel)
    return -jnp.take_along_axis(log_p, jnp.asarray(batch.targets)[..., None], axis=-1)[..., 0]


def fixed(monkeypatch, lam):
    """Every share is `lam`."""
    monkeypatch.setattr(sftmix, "draw_lam", lambda scope, alpha, key, batch, plan: jnp.full(plan.slot.shape, lam))


@pytest.mark.parametrize("hidden_kind", ["post_norm", "pre_norm"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_value_and_gradients_are_those_of_the_equations(batch, arrays, reduction, hidden_kind, monkeypatch):
    fixed(monkeypatch, 0.3)
    norm = lambda x: x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True))
    objective = SFTMix(mu=0.7, mix_reduction=reduction, mix_hidden=hidden_kind, chunk_size=7)

    def chunked(hidden, kernel):
        return total(objective(Bound(hidden, kernel, norm), batch, objective.denominators(batch))[0])

    def dense(hidden, kernel):
        states = norm(hidden) if hidden_kind == "post_norm" else hidden
        if hidden_kind == "post_norm":
            mixed = mixed_losses(batch, lambda i, n: 0.3, states, kernel)
        else:
            mixed = mixed_losses(batch, lambda i, n: 0.3, hidden, lambda_norm(norm, kernel))
        own = jnp.sum(batch.weights * plain(batch, norm(hidden), kernel))
        over = len(mixed) if reduction == "mean" else batch.weights.sum()
        return own / batch.weights.sum() + 0.7 * mixed.sum() / over

    got, grads = jax.value_and_grad(chunked, (0, 1))(*arrays)
    want, want_grads = jax.value_and_grad(dense, (0, 1))(*arrays)
    np.testing.assert_allclose(got, want, rtol=2e-6)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-6), grads, want_grads)


class lambda_norm:
    """`state @ kernel` with the norm in between."""

    def __init__(self, norm, kernel):
        self._norm, self._kernel = norm, kernel

    def __rmatmul__(self, state):
        return self._norm(state) @ self._kernel


def mixture(objective, batch, hidden, kernel):
    _, sums = objective(Bound(hidden, kernel, lambda x: x), batch, objective.denominators(batch))
    return float(objective.metrics(sums)["mixture"])


@pytest.mark.parametrize("member", [0, 1])
def test_a_share_of_one_or_none_is_the_loss_of_one_example(batch, arrays, member, monkeypatch):
    """T1: of its first targets, as many as the shorter answer has."""
    fixed(monkeypatch, 1.0 - member)
    ce, chosen = plain(batch, *arrays), []
    for row, slot in np.argwhere(batch.extras["member"] == 0):
        both = positions(batch, row, slot), positions(batch, row, slot + 1)
        chosen += [float(ce[row, p]) for p in both[member][: min(map(len, both))]]
    np.testing.assert_allclose(mixture(SFTMix(), batch, *arrays), np.mean(chosen), rtol=1e-6)


@pytest.mark.parametrize(("lam", "want"), [(0.5, 0.6931472), (0.25, 0.5632616)])
def test_by_hand(lam, want, monkeypatch):
    """T2: V = 2, z_c = (2, 0), z_u = (0, 2), y_c = y_u = 0."""
    fixed(monkeypatch, lam)
    one = np.array([0, 0]), np.array([0, 1], np.float32)
    batch = paired(make_batch([[one, one]], 4, 2))
    hidden = jnp.array([[[2.0, 0], [9, 9], [0, 2], [9, 9]]])
    got = mixture(SFTMix(), batch, hidden, jnp.eye(2))
    z = lam * np.array([2.0, 0]) + (1 - lam) * np.array([0, 2.0])
    np.testing.assert_allclose(got, np.log(np.exp(z).sum()) - z[0], rtol=1e-6)
    other = np.array([0, 1]), np.array([0, 1], np.float32)
    got = mixture(SFTMix(), paired(make_batch([[one, other]], 4, 2)), hidden, jnp.eye(2))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_equal_logits_have_loss_log_v(batch, arrays):
    np.testing.assert_allclose(mixture(SFTMix(), batch, arrays[0], 0 * arrays[1]), np.log(VOCAB), rtol=1e-6)


def test_the_loss_is_convex_in_the_states(batch, arrays, monkeypatch):
    """T4: log-sum-exp is convex, so a mixture costs at most the mixture of the four clean losses."""
    hidden, kernel = arrays
    log_p = np.asarray(jax.nn.log_softmax(hidden @ kernel))
    for lam in (0.1, 0.5, 0.8):
        mixed = np.asarray(mixed_losses(batch, lambda i, n, lam=lam: lam, hidden, kernel))
        fixed(monkeypatch, lam)
        bounds = []
        for row, slot in np.argwhere(batch.extras["member"] == 0):
            for c, u in zip(positions(batch, row, slot), positions(batch, row, slot + 1)):
                ce = lambda at, label, row=row: -log_p[row, at, batch.targets[row, label]]
                own = lambda at, c=c, u=u, ce=ce: lam * ce(at, c) + (1 - lam) * ce(at, u)  # noqa: B023
                bounds.append(lam * own(c) + (1 - lam) * own(u))
        assert (mixed <= np.array(bounds) + 1e-6).all()
        assert mixture(SFTMix(), batch, *arrays) <= np.mean(bounds) + 1e-6


def test_swapping_a_pair_and_its_shares_changes_nothing(arrays, monkeypatch):
    """T5; and T6: of identical members the mixture is the clean loss, whatever the share."""
    hidden, kernel = arrays
    examples = random_examples(2, 9, vocab=VOCAB, seed=4)
    n = len(examples[0][0])
    there, back = (paired(make_batch([e], LENGTH, SLOTS)) for e in (examples, examples[::-1]))
    moved = jnp.concatenate([hidden[:1, n : n + len(examples[1][0])], hidden[:1, :n], hidden[:1, n:]], axis=1)
    fixed(monkeypatch, 0.2)
    one = mixture(SFTMix(), there, hidden[:1], kernel)
    fixed(monkeypatch, 0.8)
    np.testing.assert_allclose(mixture(SFTMix(), back, moved[:, :LENGTH], kernel), one, rtol=1e-6)

    same = paired(make_batch([[examples[0], examples[0]]], LENGTH, SLOTS))
    twice = jnp.concatenate([hidden[:1, :n], hidden[:1, :n], hidden[:1, 2 * n :]], axis=1)
    clean = float(np.asarray(plain(same, twice, kernel))[0, positions(same, 0, 0)].mean())
    gradients = []
    for lam in (0.3, 0.9):
        fixed(monkeypatch, lam)
        np.testing.assert_allclose(mixture(SFTMix(), same, twice, kernel), clean, rtol=1e-6)
        gradients.append(jax.grad(lambda w: loss(SFTMix(mu=1.0), same, twice, w))(kernel))
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_without_mu_it_is_plain_fine_tuning_bit_for_bit(batch, arrays):
    got, grads = jax.jit(jax.value_and_grad(lambda *a: loss(SFTMix(mu=0.0), batch, *a), (0, 1)))(*arrays)
    want, want_grads = jax.jit(jax.value_and_grad(lambda *a: loss(SFT(), batch, *a), (0, 1)))(*arrays)
    np.testing.assert_array_equal(got, want)
    jax.tree.map(np.testing.assert_array_equal, grads, want_grads)
    other = loss(SFTMix(mu=0.1), batch, *arrays)
    assert abs(float(other - want)) > 1e-3


def test_the_arcsine_law():
    """T11, of the closed form and, for another alpha, of jax's sampler."""
    keys = jax.random.split(jax.random.key(0), 40_000)
    for alpha in (0.5, 2.0):
        lam = np.asarray(jax.jit(jax.vmap(lambda key, alpha=alpha: beta(key, alpha)))(keys), np.float64)
        assert stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    lam = np.asarray(jax.vmap(lambda key: beta(key, 0.5))(keys), np.float64)
    within = lambda values, want: abs(values.mean() - want) < 5 * values.std() / len(values) ** 0.5
    assert within(lam, 0.5) and within((lam - 0.5) ** 2, 0.125) and within((lam < 0.1) * 1.0, 0.20483)
    assert within(np.minimum(lam, 1 - lam), 0.18169) and within(lam * (1 - lam), 0.125)


def test_draws_belong_to_pairs_or_tokens_or_the_step(batch):
    plan, key = plan_mixture(batch), jax.random.key(5)
    draws = {scope: np.asarray(draw_lam(scope, 0.5, key, batch, plan)) for scope in ("pair", "token", "batch")}
    real, pair = np.asarray(plan.real), np.asarray(plan.slot) + SLOTS * np.arange(3)[:, None]
    distinct = lambda x: len(np.unique(x[real]))
    assert distinct(draws["batch"]) == 1
    assert distinct(draws["pair"]) == distinct(pair) == 3
    assert distinct(draws["token"]) == real.sum()
    assert not np.array_equal(
        draws["pair"][real], np.asarray(draw_lam("pair", 0.5, jax.random.key(6), batch, plan))[real]
    )

    turned = dataclasses.replace(
        jax.tree.map(lambda x: x[::-1], dataclasses.replace(batch, extras={})),
        extras={name: value[::-1] for name, value in batch.extras.items()},
    )
    again = np.asarray(draw_lam("token", 0.5, key, turned, plan_mixture(turned)))
    np.testing.assert_array_equal(again[::-1][real], draws["token"][real])


@pytest.mark.parametrize("chunk_size", [1, 8, 1000])
def test_chunk_size_changes_nothing(batch, arrays, chunk_size):
    step = lambda c: jax.value_and_grad(lambda *a: loss(SFTMix(chunk_size=c), batch, *a), (0, 1))(*arrays)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-5, atol=1e-6), step(chunk_size), step(5))


def test_metrics_add_up_to_the_loss(batch, arrays):
    objective = SFTMix(mu=0.4)
    terms, sums = objective(Bound(*arrays), batch, objective.denominators(batch))
    metrics = objective.metrics(sums)
    np.testing.assert_allclose(total(terms), metrics["nll"] + 0.4 * metrics["mixture"], rtol=1e-6)
    lengths = [len(positions(batch, r, s)) for r, s in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1))]
    assert metrics["mixed_tokens"] == sum(min(pair) for pair in zip(lengths[::2], lengths[1::2]))
