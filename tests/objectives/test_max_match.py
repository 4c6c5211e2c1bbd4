"""Worst-case consistency against its equation, written out over records, views and targets with full logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from reference import head

from jaxsft.config import ObjectiveConfig
from jaxsft.objectives.max_match import MaxMatch, without_views
from jaxsft.objectives.objective import ModelOutput
from jaxsft.objectives.registry import make_objective
from jaxsft.objectives.sft import SFT
from jaxsft.objectives.terms import total
from tests.tiny import make_batch, random_examples

LENGTH, SLOTS, WIDTH, VOCAB = 40, 6, 5, 11
GROUPS = [(3, 2), (1, 4), ()]  # examples of each group, by row
RECORDS = 3  # with views


def batch_of(groups, examples=None, seed=2):
    """Groups of examples of ragged lengths and numbers of targets, by row."""
    examples = iter(examples or random_examples(sum(map(sum, groups)), 8, vocab=VOCAB, seed=seed))
    batch = make_batch([[next(examples) for _ in range(sum(sizes))] for sizes in groups], LENGTH, SLOTS)
    member = np.full((len(groups), SLOTS), -1, np.int32)
    for row, sizes in enumerate(groups):
        member[row, : sum(sizes)] = [m for size in sizes for m in range(size)]
    batch.extras["member"] = member
    return batch


@pytest.fixture
def batch():
    return batch_of(GROUPS)


@pytest.fixture
def arrays(batch):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(*batch.tokens.shape, WIDTH)).astype(np.float32)
    return hidden, {"kernel": rng.normal(size=(WIDTH, VOCAB)).astype(np.float32)}


def terms_of(objective, batch, hidden, params):
    return objective(lambda _: ModelOutput(hidden, head, params), batch, objective.denominators(batch))


def loss(objective, batch, hidden, params):
    return total(terms_of(objective, batch, hidden, params)[0])


def consistency(objective, batch, hidden, params):
    return total({"only": terms_of(objective, batch, hidden, params)[0]["consistency"]})


def positions(batch, row, slot):
    """Of the supervised targets of an example."""
    return np.flatnonzero((batch.example_ids[row] == slot + 1) & (batch.weights[row] != 0))


def by_equation(batch, hidden, params, entropy=True):
    """Of each record with views the list of (row, positions of a view, D); without the entropy, cross-entropies."""
    log_p, found = jax.nn.log_softmax(head(params, hidden)), []
    for row, slot in np.argwhere(np.asarray(batch.extras["member"]) >= 0):
        member = batch.extras["member"][row, slot]
        if member == 0:
            record = positions(batch, row, slot)
            continue
        own = positions(batch, row, slot)
        n = min(len(own), len(record))
        teacher = jax.lax.stop_gradient(log_p[row, record[:n]])
        ce = jnp.sum(jnp.exp(teacher) * (entropy * teacher - log_p[row, own[:n]]), axis=-1)
        found += [[]] if member == 1 else []
        found[-1].append((row, own[:n], jnp.mean(ce)))
    return found


@pytest.mark.parametrize("views", ["max", "mean"])
def test_the_loss_and_its_gradient_are_those_of_the_equation(batch, arrays, views):
    """The gradient is that of the cross-entropies, which the paper has."""
    objective = MaxMatch(consistency=0.7, views=views, chunk_size=7)
    worst = [int(np.argmax([d for *_, d in own])) for own in by_equation(batch, *arrays)]
    assert len(worst) == RECORDS and any(worst)

    def dense(hidden, params, entropy):
        log_p = jax.nn.log_softmax(head(params, hidden))
        nll = -jnp.take_along_axis(log_p, batch.targets[..., None], axis=-1)[..., 0]
        weights = without_views(batch).weights
        values = [jnp.stack([d for *_, d in own]) for own in by_equation(batch, hidden, params, entropy)]
        picked = [d[k] if views == "max" else jnp.mean(d) for d, k in zip(values, worst)]
        return jnp.sum(weights * nll) / jnp.sum(weights) + 0.7 * sum(picked) / RECORDS

    got, grads = jax.value_and_grad(lambda *a: loss(objective, batch, *a), (0, 1))(*arrays)
    np.testing.assert_allclose(got, dense(*arrays, entropy=True), rtol=2e-6)
    want = jax.grad(lambda *a: dense(*a, entropy=False), (0, 1))(*arrays)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-6), grads, want)


def test_the_worst_is_no_less_than_the_mean_and_one_view_is_both(arrays, batch):
    worst, mean = (consistency(MaxMatch(views=views), batch, *arrays) for views in ("max", "mean"))
    assert worst > mean + 1e-3
    single = batch_of([(2, 1), (2, 2), (2,)])
    steps = [
        jax.value_and_grad(lambda *a, v=views: loss(MaxMatch(views=v), single, *a), (0, 1))(*arrays)
        for views in ("max", "mean")
    ]
    jax.tree.map(np.testing.assert_array_equal, *steps)


def test_the_gradient_flows_through_the_worst_view_alone(batch, arrays):
    hidden, params = arrays
    slope = np.abs(jax.grad(lambda h: consistency(MaxMatch(), batch, h, params))(hidden)).sum(-1)
    expected = np.zeros(slope.shape, bool)
    for own in by_equation(batch, hidden, params):
        row, shared, _ = max(own, key=lambda view: float(view[2]))
        expected[row, shared] = True
    np.testing.assert_array_equal(slope > 0, expected)


def test_a_record_that_predicts_has_no_gradient(batch, arrays):
    hidden, params = arrays
    for views in ("max", "mean"):
        slope = jax.grad(lambda h, v=views: consistency(MaxMatch(views=v), batch, h, params))(hidden)
        of_record = np.asarray(without_views(batch).weights) != 0
        assert not np.asarray(slope)[of_record].any() and np.asarray(slope).any()


def test_equal_views_agree(arrays):
    """Where all answers are predicted alike there is nothing to learn from; of equal views only one counts."""
    (one,) = random_examples(1, 8, vocab=VOCAB)
    n, (hidden, params) = len(one[0]), arrays
    batch = batch_of([(3,)], [one] * 3)
    same = np.zeros((1, LENGTH, WIDTH), np.float32)
    same[0, : 3 * n] = np.tile(hidden[0, :n], (3, 1))
    value, slope = jax.value_and_grad(lambda h: consistency(MaxMatch(), batch, h, params))(same)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    same[0, n : 3 * n] += 1
    worst, mean = (consistency(MaxMatch(views=views), batch, same, params) for views in ("max", "mean"))
    np.testing.assert_allclose(worst, mean, rtol=1e-6)
    slope = jax.grad(lambda h: consistency(MaxMatch(), batch, h, params))(same)
    assert np.asarray(slope)[0, n : 2 * n].any() and not np.asarray(slope)[0, 2 * n :].any()


@pytest.mark.parametrize("views", ["max", "mean"])
def test_finite_differences_in_float64(batch, views):
    """By the states of the views: those of the records are held fixed."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        hidden, kernel = rng.normal(size=(*batch.tokens.shape, WIDTH)), rng.normal(size=(WIDTH, VOCAB))
        of_view = (batch.weights != 0) & (without_views(batch).weights == 0)
        run = lambda h: loss(
            MaxMatch(views=views), batch, jnp.where(of_view[..., None], h, hidden), {"kernel": jnp.asarray(kernel)}
        )
        check_grads(run, (jnp.asarray(hidden),), order=1, modes=["rev"], rtol=1e-7)


@pytest.mark.parametrize("options", [{}, {"reduction": "example_mean"}, {"z_loss": 0.1, "label_smoothing": 0.1}])
def test_without_consistency_it_is_plain_fine_tuning_on_the_records_bit_for_bit(batch, arrays, options):
    weights = batch.weights.copy()
    for row, slot in np.argwhere(batch.extras["member"] > 0):
        weights[row, batch.example_ids[row] == slot + 1] = 0
    plain = dataclasses.replace(batch, weights=weights)
    step = lambda objective, batch: jax.jit(jax.value_and_grad(lambda *a: loss(objective, batch, *a), (0, 1)))(*arrays)
    got, want = step(MaxMatch(consistency=0.0, **options), batch), step(SFT(**options), plain)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert abs(float(step(MaxMatch(consistency=0.1, **options), batch)[0] - want[0])) > 1e-3


def test_records_without_views_have_no_part_in_it(arrays):
    batch = batch_of([(1, 1), (1,), ()])
    terms, sums = terms_of(MaxMatch(), batch, *arrays)
    assert total({"only": terms["consistency"]}) == 0 == MaxMatch().metrics(sums)["consistency"]


def test_metrics_add_up_to_the_loss(batch, arrays):
    objective = make_objective(ObjectiveConfig("max_match", consistency=0.4))
    terms, sums = terms_of(objective, batch, *arrays)
    metrics = objective.metrics(sums)
    np.testing.assert_allclose(total(terms), metrics["nll"] + 0.4 * metrics["consistency"], rtol=1e-6)
    assert metrics["supervised_tokens"] == np.count_nonzero(without_views(batch).weights)
