"""Each way of merging one tensor, against closed forms and plain NumPy in float64, and what all ways have in common."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxsft.config import MergeConfig, MeshConfig
from jaxsft.merging import sphere
from jaxsft.merging.breadcrumbs import breadcrumbs
from jaxsft.merging.dare import dare, model_key
from jaxsft.merging.factors import concat_factors, mean_factors, truncate
from jaxsft.merging.fisher import fisher
from jaxsft.merging.linear import linear, task_arithmetic
from jaxsft.merging.registry import METHODS, Leaf
from jaxsft.merging.regmean import regmean
from jaxsft.merging.sce import sce
from jaxsft.merging.selection import largest, share, taken
from jaxsft.merging.ties import ties
from jaxsft.sharding import make_mesh

SHAPE = (12, 20)
PLAIN = [name for name, method in METHODS.items() if not method.statistics]


def made(count: int, shape: tuple[int, ...] = SHAPE, spread: float = 0.1, seed: int = 0) -> tuple[list, np.ndarray]:
    """Models around a base, float32."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape).astype(np.float32)
    return [base + spread * rng.standard_normal(shape).astype(np.float32) for _ in range(count)], base


def call(method: str, models, base, weights, density: float = 1.0, **settings):
    config = MergeConfig(method=method, **settings)
    kept = base if "base" in METHODS[method].reads else None
    arrays = tuple(jnp.asarray(model) for model in models)
    leaf = Leaf("layers.0.mlp.up_proj.kernel", arrays, None if kept is None else jnp.asarray(kept), weights,
                (density,) * len(models))  # fmt: skip
    return np.asarray(METHODS[method].run(leaf, config), np.float64)


def wide(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


# What all methods have in common.


@pytest.mark.parametrize("method", [m for m in PLAIN if not m.startswith("della")])
def test_one_model_twice_is_that_model(method):
    """DELLA always drops something."""
    (model, *_), base = made(1)
    np.testing.assert_allclose(call(method, [model, model], base, (0.5, 0.5)), model, atol=2e-6)


@pytest.mark.parametrize(
    "method", [m for m in PLAIN if m not in ("slerp", "nuslerp") and "seed" not in METHODS[m].reads]
)
def test_the_order_of_models_does_not_matter(method):
    models, base = made(3)
    weights = (0.2, 0.5, 0.3) if "weights" in METHODS[method].reads else (1.0,) * 3
    want = call(method, models, base, weights, 0.4)
    for order in itertools.permutations(range(3)):
        got = call(method, [models[i] for i in order], base, tuple(weights[i] for i in order), 0.4)
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp", "nuslerp", "ties"])
def test_a_weight_of_one_is_that_model(method):
    models, base = made(2)
    for k in range(2):
        weights = tuple(float(i == k) for i in range(2))
        got = call(method, models, base, weights)
        # a model of weight 0 still has a vote of 0, which agrees with nothing
        np.testing.assert_allclose(got, models[k], atol=1e-6)


@pytest.mark.parametrize("method", PLAIN)
def test_the_sum_is_taken_wide_and_says_so(method):
    models, base = made(2, spread=0.5)
    low = lambda a: jnp.asarray(a, jnp.bfloat16)
    arrays, start = [low(m) for m in models], low(base)
    exact = call(method, [np.asarray(a, np.float32) for a in arrays], np.asarray(start, np.float32), (0.5, 0.5), 0.5)
    np.testing.assert_allclose(call(method, arrays, start, (0.5, 0.5), 0.5), exact, atol=1e-6)
    leaf = Leaf("x", tuple(arrays), start if "base" in METHODS[method].reads else None, (0.5, 0.5), (0.5, 0.5))
    assert METHODS[method].run(leaf, MergeConfig(method=method)).dtype == jnp.float32


@pytest.mark.parametrize("method", PLAIN)
def test_devices_change_nothing(method):
    """Split over eight devices by rows or by columns: the same masks, thresholds and angles."""
    models, base = made(2, shape=(16, 24))
    want = call(method, models, base, (0.6, 0.4), 0.5)
    mesh = make_mesh(MeshConfig())
    for spec in (PartitionSpec("fsdp"), PartitionSpec(None, "fsdp")):
        split = [jax.device_put(a, NamedSharding(mesh, spec)) for a in (*models, base)]
        np.testing.assert_allclose(call(method, split[:2], split[2], (0.6, 0.4), 0.5), want, atol=1e-6)


# Weighted sums.


def test_weighted_means():
    models, base = made(3)
    a, b, c, start = wide(*models, base)
    np.testing.assert_allclose(linear(models, (1.0, 2.0, 5.0)), (a + 2 * b + 5 * c) / 8, atol=1e-6)
    np.testing.assert_allclose(linear(models, (1.0, -2.0, 0.5), normalize=False), a - 2 * b + c / 2, atol=1e-6)
    want = start + 0.7 * (2 * (a - start) + 3 * (b - start) - (c - start))
    np.testing.assert_allclose(task_arithmetic(models, base, (2, 3, -1), 0.7), want, atol=1e-5)
    mean = task_arithmetic(models, base, (1, 1, 1), 1 / 3)
    np.testing.assert_allclose(mean, linear(models, (1, 1, 1)), atol=1e-6)  # affinity
    with pytest.raises(ValueError, match="nearly cancel"):
        linear(models[:2], (1.0, -0.999))
    with pytest.raises(ValueError, match="2 weights for 3 models"):
        linear(models, (1.0, 1.0))


def test_the_mean_of_convex_models_is_no_worse_than_they_are_on_average():
    """Logistic regressions on the halves of a set, on any data (Jensen); linear ones predict the mean."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((64, 5)), rng.integers(0, 2, 64)
    models = []
    for half in (slice(0, 32), slice(32, 64)):
        w = np.zeros(5)
        for _ in range(200):
            w += 0.5 * x[half].T @ (labels[half] - 1 / (1 + np.exp(-x[half] @ w))) / 32
        models.append(w.astype(np.float32))
    merged = np.asarray(linear([jnp.asarray(w) for w in models], (1.0, 1.0), True), np.float64)
    np.testing.assert_allclose(x @ merged, np.mean([x @ w for w in models], axis=0), atol=1e-6)
    for other in (x, 3 * rng.standard_normal((50, 5))):
        signs = np.where(rng.integers(0, 2, len(other)), 1, -1)
        loss = lambda w: np.log1p(np.exp(-signs * (other @ w))).mean()  # noqa: B023
        assert loss(merged) <= np.mean([loss(w) for w in models]) + 1e-7


def test_the_mean_of_copies_is_exact_and_rounded_once():
    """In bfloat16 throughout, 1/3 of 1, 2^-8 and 2^-8 would lose the small ones."""
    models = [jnp.asarray(x, jnp.bfloat16).reshape(1) for x in (1.0, 3 * 2**-8, 3 * 2**-8)]
    assert float(linear(models, (1, 1, 1), normalize=False)[0]) == 1 + 6 * 2**-8
    copies = [jnp.asarray(made(1)[0][0], jnp.bfloat16)] * 4
    assert (linear(copies, (0.25,) * 4).astype(jnp.bfloat16) == copies[0]).all()


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"])
def test_without_a_vote_the_result_is_linear_in_scale(method):
    models, base = made(2)
    one, two = (call(method, models, base, (1.0, 0.5), 0.5, scale=scale) for scale in (1.0, 2.0))
    np.testing.assert_allclose(two - base, 2 * (one - base), atol=1e-5)


# On the sphere.


def test_slerp_of_two_dimensions_by_hand():
    a, b = np.array([2.0, 0.0]), np.array([0.0, 3.0])
    for t in (0.0, 0.25, 0.5, 1.0):
        want = np.sin((1 - t) * np.pi / 2) * a + np.sin(t * np.pi / 2) * b
        np.testing.assert_allclose(sphere.slerp([a, b], (1 - t, t)), want, atol=1e-6)
    np.testing.assert_allclose(sphere.slerp([a, a * 2], (0.5, 0.5)), [3.0, 0.0], atol=1e-6)  # parallel: a line
    np.testing.assert_allclose(sphere.slerp([a, -a], (0.75, 0.25)), [1.0, 0.0], atol=1e-6)  # opposite: likewise
    np.testing.assert_allclose(sphere.slerp([a, 0 * a], (0.5, 0.5)), [1.0, 0.0], atol=1e-6)


def test_nuslerp_of_task_vectors_rows_and_small_angles():
    models, base = made(2)
    a, b, start = wide(*models, base)
    flat = sphere.nuslerp([a - start, b - start], (1, 3))
    np.testing.assert_allclose(sphere.nuslerp(models, (1, 3), base), start + flat, atol=1e-5)
    rows = sphere.nuslerp(models, (1, 3), per_row=True)
    for i in range(len(a)):
        np.testing.assert_allclose(rows[i], sphere.nuslerp([a[i], b[i]], (1, 3)), atol=1e-5)
    near = a + 1e-3 * (b - a)  # where slerp takes a line the arc differs from it by the square of the angle
    np.testing.assert_allclose(sphere.nuslerp([a, near], (0.5, 0.5)), (a + near) / 2, atol=1e-5)
    t = np.linalg.norm
    unit = lambda x: x / t(x)
    found = np.asarray(sphere.nuslerp([unit(a), unit(b)], (0.3, 0.7)), np.float64)
    angle = lambda x, y: np.arccos(unit(x).ravel() @ unit(y).ravel())
    assert abs(angle(unit(a), found) - 0.7 * angle(a, b)) < 1e-3 and abs(t(found) - 1) < 1e-5


def test_the_karcher_mean():
    rng = np.random.default_rng(1)
    points = [rng.standard_normal(6) for _ in range(4)]
    points = [p + 1.5 for p in points]  # in one half of the sphere
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    found = np.asarray(sphere.karcher(points, tuple(weights)), np.float64)
    lengths = [np.linalg.norm(p) for p in points]
    assert abs(np.linalg.norm(found) - weights @ lengths) < 1e-5
    mean, gradient = found / np.linalg.norm(found), 0
    for weight, point, length in zip(weights, points, lengths):
        unit = point / length
        cosine = mean @ unit
        gradient = gradient + weight * np.arccos(cosine) / np.sqrt(1 - cosine**2) * (unit - cosine * mean)
    assert np.linalg.norm(gradient) < 1e-5  # the mean is where the weighted logarithms cancel
    two = [p / np.linalg.norm(p) for p in points[:2]]
    np.testing.assert_allclose(sphere.karcher(two, (0.3, 0.7)), sphere.nuslerp(two, (0.3, 0.7)), atol=1e-5)
    np.testing.assert_allclose(sphere.karcher([points[0], 0 * points[0]], (0.5, 0.5)), points[0] / 2, atol=1e-6)


def test_model_stock():
    base = np.zeros(6)
    apart = [np.eye(6)[0], np.eye(6)[1]]
    np.testing.assert_allclose(sphere.model_stock(apart, base), base, atol=1e-7)  # cos 0: the base
    np.testing.assert_allclose(sphere.model_stock([apart[0], -apart[0]], base), base, atol=1e-7)
    models, base = made(3, spread=0.3)
    models = [m + 0.3 for m in models]  # a common part
    a, b, c, start = wide(*models, base)
    taus = [(x - start).ravel() for x in (a, b, c)]
    cos = np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in itertools.combinations(taus, 2)])
    t = 3 * cos / (1 + 2 * cos)
    np.testing.assert_allclose(sphere.model_stock(models, base), t * (a + b + c) / 3 + (1 - t) * start, atol=1e-5)
    rows = sphere.model_stock(models, base, per_row=True)
    for i in range(3):
        own = sphere.model_stock([m[i] for m in models], base[i])
        np.testing.assert_allclose(rows[i], own, atol=1e-5)


# Selection.


@pytest.mark.parametrize("kind", ["distinct", "ties", "zeros"])
@pytest.mark.parametrize("split", [False, True])
def test_exactly_the_largest(kind, split):
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal((16, 8))).astype(np.float32)
    x = {"distinct": x, "ties": np.round(x * 2) / 2, "zeros": x * (x > 1)}[kind].astype(np.float32)
    sharding = NamedSharding(make_mesh(MeshConfig()), PartitionSpec("fsdp"))
    array = jax.device_put(x, sharding) if split else jnp.asarray(x)
    order = np.argsort(-x.ravel(), kind="stable")
    for count in (0, 1, 5, 64, 127, 128):
        want = np.zeros(x.size, bool)
        want[order[:count]] = True
        np.testing.assert_array_equal(np.asarray(taken(array, largest(array, count))).ravel(), want)
        if 0 < count < 128:
            all_ties = np.asarray(taken(array, largest(array, count, all_ties=True)))
            np.testing.assert_array_equal(all_ties, x >= x.ravel()[order[count - 1]])
    assert share(0.29, 100) == 29 and share(0.001, 10) == 1 and share(1.0, 7) == 7


# Sparse task vectors.

TAU_1, TAU_2 = np.array([1, -2, 0.1, 0, 3.0]), np.array([-0.5, -1, 0.2, 0.4, -4.0])


def test_ties_by_hand():
    merge = lambda trim: ties([TAU_1, TAU_2], np.zeros(5), (1, 1), (0.6, 0.6), trim=trim)
    np.testing.assert_allclose(merge("exact"), [1, -1.5, 0, 0, -4])
    np.testing.assert_allclose(merge("threshold"), [1, -1.5, 0.1, 0.4, -4])  # the authors' code keeps one more
    with pytest.raises(ValueError, match="both signs"):
        ties([TAU_1, TAU_2], np.zeros(5), (1, -0.5), (1, 1))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rescale", ["none", "l1"])
def test_ties_against_numpy(normalize, rescale):
    models, base = made(3)
    weights, densities = (0.5, 1.0, 2.0), (0.2, 0.5, 0.9)
    values = []
    for model, weight, density in zip(wide(*models), weights, densities):
        tau = (model.astype(np.float32) - base).astype(np.float64)
        kept = np.zeros_like(tau).ravel()
        order = np.argsort(-np.abs(tau).ravel(), kind="stable")[: int(density * tau.size)]
        kept[order] = tau.ravel()[order]
        kept = kept * (np.abs(tau).sum() / np.abs(kept).sum() if rescale == "l1" else 1)
        values.append(weight * kept.reshape(tau.shape))
    sign = np.where(sum(values) >= 0, 1, -1)
    agree = [np.sign(v) == sign for v in values]
    divisor = sum(a * w for a, w in zip(agree, weights))
    total = sum(a * v for a, v in zip(agree, values))
    want = base + 0.8 * (total / np.where(divisor, divisor, 1) if normalize else total)
    got = ties(models, base, weights, densities, 0.8, normalize, rescale=rescale)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_breadcrumbs_drop_both_ends():
    tau = np.array([5.0, -4, 3, -2, 1, 0.5, -0.25, 0.1, 0.05, 0.01])
    run = lambda density, gamma: np.asarray(breadcrumbs([tau], np.zeros(10), (1.0,), (density,), gamma))
    np.testing.assert_allclose(run(0.5, 0.2), np.where(np.isin(np.arange(10), [2, 3, 4, 5, 6]), tau, 0))
    np.testing.assert_allclose(run(0.5, 0.0), np.where(np.arange(10) < 5, tau, 0))
    np.testing.assert_allclose(run(0.5, 0.01), np.where(np.arange(10) < 5, tau, 0))  # floor(0.1) = 0 are dropped
    np.testing.assert_allclose(run(0.9, 0.5), np.where(np.arange(10) >= 1, tau, 0))  # the top cut gives way
    np.testing.assert_allclose(run(1.0, 0.2), tau)
    both = breadcrumbs([tau, -tau / 2], np.zeros(10), (1.0, 1.0), (0.5, 0.5), 0.2, vote=True)
    np.testing.assert_allclose(both, run(0.5, 0.2))  # the smaller opposes, and is outvoted


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_random_masks_are_unbiased(epsilon):
    """The mean over keys is the task vector, for DARE and DELLA alike."""
    models, base = made(1, shape=(3, 5), spread=1.0)
    tau = models[0] - base
    keys = jax.random.split(jax.random.key(0), 4000)
    run = lambda key: dare([jnp.asarray(models[0])], jnp.asarray(base), (1.0,), (0.5,), [key], epsilon=epsilon) - base
    found = np.asarray(jax.vmap(run)(keys), np.float64)
    assert set(np.unique((found != 0).mean(0).round(1))) <= (
        {0.5} if not epsilon else {0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}
    )
    error = found.std(0) / len(keys) ** 0.5
    assert (np.abs(found.mean(0) - tau) < 5 * error).all()
    if epsilon:  # the smallest of each row is kept with 0.2, the largest with 0.8
        kept = (found != 0).mean(0)
        order = np.argsort(np.abs(tau), -1)
        np.testing.assert_allclose(np.take_along_axis(kept, order, -1).mean(0), np.linspace(0.2, 0.8, 5), atol=0.03)


def test_masks_depend_on_seed_tensor_and_model_alone():
    models, base = made(2)
    settings = {"density": 0.5, "rescale": "none"}
    first = call("dare_linear", models, base, (1.0, 0.0), **settings) != base
    second = call("dare_linear", [models[1], models[1]], base, (0.0, 1.0), **settings) != base
    assert 0.35 < (first == second).mean() < 0.65  # one mask for each model
    assert not np.array_equal(first, call("dare_linear", models, base, (1.0, 0.0), seed=1, **settings) != base)
    keys = [model_key(0, name, k) for name in ("a", "b") for k in (0, 1)]
    assert len({bytes(np.asarray(jax.random.key_data(key))) for key in keys}) == 4


def test_rescaling_to_the_l1_norm():
    models, base = made(1)
    got = call("dare_linear", models, base, (1.0,), 0.3, rescale="l1") - base
    np.testing.assert_allclose(np.abs(got).sum(), np.abs(models[0] - base).sum(), rtol=1e-5)
    none = call("dare_linear", models, base, (1.0,), 0.3, rescale="none") - base
    kept = none != 0
    np.testing.assert_allclose(none[kept], (models[0] - base)[kept], rtol=1e-5, atol=1e-6)
    ratio = got[kept] / none[kept]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_a_column_has_a_rank():
    """Tensors of one column have neither a smallest nor a largest entry of a row."""
    models, base = made(1, shape=(64, 1))
    assert np.isfinite(call("della_linear", models, base, (1.0,), 0.5)).all()
    with pytest.raises(ValueError, match=r"probabilities of 0\.75 to 1\.05"):
        call("della_linear", models, base, (1.0,), 0.9)


def test_sce_against_numpy_whatever_the_scale():
    for spread in (1.0, 1e-4):  # weights depend on ratios alone
        (a, b, c), base = made(3, spread=spread, seed=3)
        taus = np.stack([x - base for x in wide(a, b * 1, c)])
        variance = taus.var(0)
        keep = variance >= np.sort(variance.ravel())[-int(0.3 * variance.size)]
        taus = taus * keep
        weights = (taus**2).mean((1, 2))
        weights = weights / weights.sum()
        agree = np.sign(taus) == np.where(taus.sum(0) >= 0, 1, -1)
        divisor = np.einsum("k,kij->ij", weights, agree)
        want = base + np.einsum("k,kij->ij", weights, agree * taus) / np.where(divisor, divisor, 1)
        np.testing.assert_allclose(np.asarray(sce([a, b, c], base, 0.3)) - base, want - base, atol=2e-3 * spread)
    np.testing.assert_array_equal(sce([base, base], base, 0.5), base)


def test_sce_keeps_as_many_entries_as_it_says():
    """The one at the cut too, whose variance the compiler may round in another way wherever it is computed anew."""
    for seed in range(20):
        models, base = made(3, spread=1e-2, seed=seed)
        moved = np.asarray(sce(models, base, 0.5)) != base
        assert moved.sum() == moved.size // 2, seed


# LoRA factors.


def adapters(count, rank=3, shared=False, drift=1.0):
    rng = np.random.default_rng(5)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    first = draw(12, rank)
    return [(first + drift * draw(12, rank) if shared else draw(12, rank), draw(rank, 8)) for _ in range(count)]


def test_factors_and_updates_by_hand():
    """Two adapters of rank 1: what the mean of factors lacks is the covariance of the factors."""
    one = jnp.array([[1.0], [2.0]]), jnp.array([[1.0, 0.0]])
    two = jnp.array([[3.0], [-1.0]]), jnp.array([[2.0, 1.0]])
    a, b = mean_factors([one, two], (1, 1))
    np.testing.assert_allclose((a @ b).T, [[3, 0.75], [1, 0.25]])
    a, b = concat_factors([one, two], (1.0, 1.0), (0.5, 0.5))
    np.testing.assert_allclose((a @ b).T, [[3.5, 0], [1.5, -0.5]])
    a, b = mean_factors([one, two], (0, 1))
    np.testing.assert_allclose(a, two[0])  # weights fall on both factors


def test_adapters_side_by_side_are_exact_and_cut_best():
    pairs, scales, weights = adapters(3), (2.0, 1.0, 0.5), (0.2, -0.5, 1.0)
    want = sum(
        w * s * np.asarray(a, np.float64) @ np.asarray(b, np.float64) for (a, b), s, w in zip(pairs, scales, weights)
    )
    a, b = concat_factors(pairs, scales, weights)
    np.testing.assert_allclose(a @ b, want, atol=1e-5)
    u, sizes, v = np.linalg.svd(want)
    for rank in (2, 8):
        (left, right), lost = truncate(a, b, rank)
        assert left.shape == (12, min(rank, 9)) and right.shape == (min(rank, 9), 8)
        np.testing.assert_allclose(left @ right, (u[:, :rank] * sizes[:rank]) @ v[:rank], atol=1e-4)
        np.testing.assert_allclose(lost, np.linalg.norm(sizes[rank:]) / np.linalg.norm(sizes), atol=1e-5)


def test_the_mean_of_factors_is_near_only_from_one_start():
    errors = []
    for shared, drift in ((True, 0.0), (True, 0.1), (False, 1.0)):
        pairs = adapters(4, shared=shared, drift=drift)
        want = sum(a @ b for a, b in pairs) / 4
        a, b = mean_factors(pairs, (1, 1, 1, 1))
        errors.append(float(jnp.linalg.norm(a @ b - want) / jnp.linalg.norm(want)))
    assert errors[0] < 1e-5 < errors[1] < 0.3 < 0.6 < errors[2]


# Statistics of data.


def test_fisher_by_hand():
    models, information = [jnp.array([1.0, 4.0]), jnp.array([3.0, 0.0])], [jnp.array([1.0, 1.0]), jnp.array([3.0, 1.0])]
    np.testing.assert_allclose(fisher(models, information, (1, 1)), [2.5, 2.0])
    np.testing.assert_allclose(fisher(models, information, (3, 1)), [2.0, 3.0])
    np.testing.assert_allclose(fisher(models, [jnp.ones(2)] * 2, (1, 1)), [2.0, 2.0])
    np.testing.assert_allclose(
        fisher(models, [jnp.zeros(2)] * 2, (1, 3)), [2.5, 1.0]
    )  # the mean where nothing is known
    scaled = [information[0] * 100, information[1]]
    np.testing.assert_allclose(fisher(models, scaled, (1, 1), norms=(100.0, 1.0)), [2.5, 2.0], rtol=1e-5)


def test_regmean_is_least_squares():
    """Without shrinking, against NumPy's solution of the regression itself."""
    rng = np.random.default_rng(0)
    models = [rng.standard_normal((5, 7)) for _ in range(2)]  # [out, in]
    inputs = [rng.standard_normal((40, 7)) @ rng.standard_normal((7, 7)) for _ in range(2)]
    targets = [x @ w.T for x, w in zip(inputs, models)]
    want = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(targets), rcond=None)[0].T
    grams = [jnp.asarray(x.T @ x, jnp.float32) for x in inputs]
    kernels = [jnp.asarray(w, jnp.float32) for w in models]
    np.testing.assert_allclose(regmean(kernels, grams, (1, 1), shrink=1.0), want, atol=1e-3)
    mean = regmean(kernels, [jnp.eye(7)] * 2, (1, 1), shrink=1.0)
    np.testing.assert_allclose(mean, (models[0] + models[1]) / 2, atol=1e-5)
    diagonal = regmean(kernels, grams, (1, 1), shrink=0.0)  # a mean weighted input by input
    d = [np.diag(g).astype(np.float64) for g in grams]
    np.testing.assert_allclose(diagonal, (models[0] * d[0] + models[1] * d[1]) / (d[0] + d[1]), atol=1e-4)
    np.testing.assert_allclose(regmean([kernels[0]] * 2, grams, (1, 1)), models[0], atol=1e-6)
    blind = regmean(kernels, [jnp.zeros((7, 7))] * 2, (1, 3))
    np.testing.assert_allclose(blind, (models[0] + 3 * models[1]) / 4, atol=1e-6)
