"""The parts of SpIEL by themselves: clock, optimizers, selection. Recorded values are of the authors' code."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from jaxsft.adapters.spiel import kernel, selection, tensors
from jaxsft.adapters.spiel.optimizer import aged_adam, sm3_step
from jaxsft.adapters.spiel.reselection import seeded
from jaxsft.adapters.spiel.schedule import Clock
from jaxsft.models.projection import Context

RECORDED = Path(__file__).parent / "recorded" / "spiel"
SIZE = 20 * 30


def clock(**changes: object) -> Clock:
    return Clock(**{"every": 20, "phase": 5, "rate": 0.2, "policy": "linear", "steps": 60} | changes)


def test_when_the_support_changes_and_by_how_much():
    assert clock().selections == [t for t in range(1, 61) if clock().selects(t)] == [5, 25, 45]
    shares = [clock().proportion(t) for t in clock().selections]
    np.testing.assert_allclose(shares, [1, 0.2 * (1 - 25 / 60), 0.05])
    cosine = [clock(policy="cosine").proportion(t) for t in (5, 25, 45)]
    np.testing.assert_allclose(cosine, 0.1 * (1 + np.cos(np.pi * np.array([5, 25, 45]) / 60)))


@pytest.mark.parametrize(("parity", "lengths"), [(False, [5, 5, 5]), (True, [5, 6, 6])])
@pytest.mark.parametrize("steps", [60, 64, 65])
def test_phases_end_at_the_change(parity, lengths, steps):
    """The last one is not begun where the run ends before its change."""
    settings = clock(parity=parity, steps=steps)
    gathering = [t for t in range(1, steps + 1) if settings.gathers(t)]
    ends = [5, 25, 45] + ([65] if steps == 65 else [])
    lengths = lengths + lengths[-1:] * (len(ends) - 3)
    assert gathering == [t for end, n in zip(ends, lengths) for t in range(end - n + 1, end + 1)]
    opening = [t for t in gathering if settings.opens(t)]
    assert opening == [end - n + 1 for end, n in zip(ends, lengths)]


def test_sparse_sm3_as_recorded():
    made = np.load(RECORDED / "sm3_sparse.npz")
    rows, columns, values = jnp.zeros(4), jnp.zeros(5), jnp.zeros(6)
    for i, gradient in enumerate(made["g"]):
        direction, rows, columns = sm3_step(jnp.asarray(gradient), jnp.asarray(made["idx"]), rows, columns, 1e-8)
        values = values - 0.1 * direction
        np.testing.assert_allclose(values, made[f"v{i}"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(rows, made[f"row{i}"], rtol=1e-5)
        np.testing.assert_allclose(columns, made[f"col{i}"], rtol=1e-5)


def test_selection_by_gradient_as_recorded():
    """Four micro-batches of two a step; three of four are replaced, for one that is dropped comes again."""
    made = np.load(RECORDED / "spiel_ag_select.npz")
    k, n = 8, int(8 * float(made["p"]))
    idx, values = jnp.asarray(made["idx0"]), jnp.asarray(made["val0"])
    candidates = kernel.largest(jnp.asarray(made["G"][0]), k, k)
    assert set(candidates.tolist()) == set(made["cand_idx"].tolist())
    at = np.array([[kernel.gather(jnp.asarray(g), candidates) for g in made["G"]]])[0]
    order = [made["cand_idx"].tolist().index(c) for c in candidates.tolist()]
    np.testing.assert_allclose(at.sum(0), made["cand_g"][order], rtol=1e-5)
    np.testing.assert_allclose((at**2).sum(0), made["cand_g2"][order], rtol=1e-5)

    total = jnp.asarray(at.sum(0))
    taken = np.asarray(selection.by_gradient(idx, values, candidates, jnp.abs(total), n, 20))
    mu, nu = seeded(total, jnp.asarray((at**2).sum(0)), jnp.int32(4), jnp.int32(4) // made["ga"], (0.9, 0.999))
    new = lambda old, fresh: np.where(taken >= 0, np.asarray(fresh)[taken], old)
    assert (taken >= 0).sum() == 3
    np.testing.assert_array_equal(new(idx, candidates), made["idx1"])
    np.testing.assert_allclose(new(values, np.zeros(8)), made["val1"], rtol=1e-5)
    np.testing.assert_allclose(new(made["exp_avg0"], mu), made["exp_avg1"], rtol=1e-5)
    np.testing.assert_allclose(new(made["exp_avg_sq0"], nu), made["exp_avg_sq1"], rtol=1e-5)


def drawn(seed: int, k: int = 40, padding: int = 5):
    """A support with padding, deltas of distinct sizes, and as many candidates, some of them tuned."""
    rng = np.random.default_rng(seed)
    pad = SIZE + np.arange(padding)
    idx = np.concatenate([np.sort(rng.choice(SIZE, k, replace=False)), pad])
    candidates = np.concatenate([rng.choice(idx[:k], k // 4, replace=False), rng.choice(SIZE, 4 * k, replace=False)])
    candidates = np.sort(np.array(list(dict.fromkeys(candidates.tolist()))[:k]))
    scores = np.concatenate([rng.permutation(k) + 1.0, np.zeros(padding)])
    delta = np.concatenate([(rng.permutation(k) + 1.0) * rng.choice([-1, 1], k), np.zeros(padding)])
    return [jnp.asarray(a) for a in (idx, delta, np.concatenate([candidates, pad]), scores)]


@pytest.mark.parametrize(("seed", "n"), [*itertools.product(range(3), (0, 7, 40))])
def test_selection_by_gradient_in_words(seed, n):
    idx, delta, candidates, scores = drawn(seed)
    taken = np.asarray(selection.by_gradient(idx, delta, candidates, scores, jnp.int32(n), SIZE))
    old, grown = np.asarray(idx)[:40], np.asarray(candidates)[:40]
    dropped = set(old[np.argsort(np.abs(delta[:40]))[:n]].tolist())
    eligible = [c for c in grown[np.argsort(-scores[:40])].tolist() if c not in set(old.tolist()) - dropped]
    come = eligible[:n]
    pairs = zip([i for i in np.argsort(np.abs(delta[:40])) if old[i] in dropped - set(come)],
                [c for c in come if c not in dropped])  # fmt: skip
    want = {int(slot): c for slot, c in pairs}
    assert {i: int(candidates[t]) for i, t in enumerate(taken) if t >= 0} == want
    assert n == 0 or want
    after = np.where(taken >= 0, np.asarray(candidates)[taken], idx)
    assert len(set(after.tolist())) == len(after), "positions are distinct"


def test_fewer_candidates_than_slots():
    """All but one of the candidates are tuned and kept, so one slot changes: that of the smallest delta."""
    idx, delta = jnp.arange(0, 16, 2), jnp.array([5.0, 1, 6, 2, 7, 3, 8, 4])
    candidates = jnp.array([0, 4, 8, 9, 12, 16, 17, 18])  # the last three are padding
    taken = selection.by_gradient(idx, delta, candidates, jnp.ones(8), jnp.int32(4), 16)
    assert taken.tolist() == [-1, 3, -1, -1, -1, -1, -1, -1]


@pytest.mark.parametrize(("seed", "n"), [*itertools.product(range(3), (0, 7, 40))])
def test_selection_by_momentum(seed, n):
    idx, delta, _, _ = drawn(seed)
    rng = np.random.default_rng(seed)
    rows, columns = rng.random(20), rng.random(30)
    best, taken = selection.by_momentum(idx, delta, jnp.asarray(rows), jnp.asarray(columns), jnp.int32(n), 40)
    grown = np.asarray(best)[np.asarray(taken)[np.asarray(taken) >= 0]]
    assert len(grown) == len(set(grown.tolist())) == n, "exactly n replacements"
    before = set(np.asarray(idx).tolist())
    assert not before & set(grown.tolist())
    scores = np.float32(rows)[:, None] * np.float32(columns)
    left_out = [scores.flat[i] for i in range(SIZE) if i not in before and i not in set(grown.tolist())]
    assert n == 0 or scores.flat[grown].min() >= max(left_out)
    assert set(np.argsort(np.abs(delta[:40]))[:n].tolist()) == set(np.flatnonzero(np.asarray(taken) >= 0).tolist())


def test_adam_of_one_age_is_adam():
    """optax adds its epsilon after the correction, so both have none here."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.zeros(50)}
    ours, other = aged_adam(0.9, 0.999, 0.0), optax.scale_by_adam(0.9, 0.999, 0.0)
    state, reference = ours.init(params), other.init(params)
    for _ in range(5):
        gradient = {"w": jnp.asarray(rng.normal(size=50), jnp.float32)}
        direction, state = ours.update(gradient, state)
        want, reference = other.update(gradient, reference)
        np.testing.assert_allclose(direction["w"], want["w"], rtol=1e-4)
    assert state.age["w"].dtype == jnp.int32 and set(state.age["w"].tolist()) == {6}


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_newcomers_of_constant_gradient(micro_batches):
    """Their first and second moments are g and g^2; the authors' are those of a micro-batch."""
    g, steps = 3.0, 5
    for samples, of, want in ((steps, g, g), (steps * micro_batches, g / micro_batches, g / micro_batches)):
        total, square = jnp.full(3, samples * of), jnp.full(3, samples * of**2)
        mu, nu = seeded(total, square, jnp.int32(samples), jnp.int32(steps), (0.9, 0.999))
        np.testing.assert_allclose(mu / (1 - 0.9**steps), want, rtol=1e-5)
        np.testing.assert_allclose(nu / (1 - np.float32(0.999) ** steps), want**2, rtol=1e-5)


def test_a_newcomer_goes_on_as_one_that_was_there():
    """Seeded with the moments of constant gradients, its next direction is that of a weight that saw them."""
    transformation, g = aged_adam(0.9, 0.999, 1e-8), 2.5
    state = transformation.init(jnp.zeros(1))
    for _ in range(5):
        _, state = transformation.update(jnp.full(1, g), state)
    mu, nu = seeded(jnp.full(1, 5 * g), jnp.full(1, 5 * g * g), jnp.int32(5), jnp.int32(5), (0.9, 0.999))
    np.testing.assert_allclose(mu, state.mu, rtol=1e-5)
    np.testing.assert_allclose(nu, state.nu, rtol=1e-4)
    assert state.age.tolist() == [6], "one more than the samples"


def test_positions_travel_whole():
    """Two float32 numbers carry what one would round."""
    positions = jnp.array([0, 1, 65535, 65536, 2**24 + 1, 2**31 - 1], jnp.int32)
    halves = [half.astype(jnp.float32) for half in divmod(positions, kernel.HALF)]
    np.testing.assert_array_equal(kernel.positions_of(jnp.stack([positions * 0.0, *halves])), positions)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_deltas_are_added_at_their_places(dtype):
    """Rounded once: the sum in float32; with `rounds_delta` as the authors do. Padding changes nothing."""
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(20, 30)), dtype)
    idx = kernel.padded(jnp.asarray(np.sort(rng.choice(SIZE, 40, replace=False)), jnp.int32), SIZE, 48)
    delta = jnp.asarray(0.1 * rng.normal(size=48), jnp.float32)
    want = np.array(matrix, np.float32).reshape(-1)
    want[np.asarray(idx[:40])] += np.asarray(delta[:40])
    got = kernel.tuned(matrix, delta, idx, dtype)
    np.testing.assert_array_equal(got.reshape(-1), jnp.asarray(want).astype(dtype))
    want = np.array(matrix).reshape(-1)
    want[np.asarray(idx[:40])] += np.asarray(delta[:40].astype(dtype))
    np.testing.assert_array_equal(kernel.tuned(matrix, delta, idx, dtype, True).reshape(-1), want)


def test_gradients_by_finite_differences():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, matrix = jnp.asarray(rng.normal(size=(6, 20))), jnp.asarray(rng.normal(size=(20, 30)))
        idx = kernel.padded(jnp.asarray(np.sort(rng.choice(SIZE, 40, replace=False)), jnp.int32), SIZE, 48)
        delta = jnp.asarray(rng.normal(size=48))
        static = kernel.Static(40, ("embed", "mlp"))
        target = jnp.asarray(rng.normal(size=(6, 30)))

        def loss(x, delta, probe):
            watch = None if probe is None else kernel.Watch(probe, idx + 0, jnp.bool_(False))
            return jnp.sum(jnp.sin(kernel._product(static, x, matrix, delta, idx, watch)) * target)

        check_grads(lambda x, delta: loss(x, delta, None), (x, delta), 1, "rev", rtol=1e-6)
        by_delta, by_probe = jax.grad(loss, (1, 2))(x, delta, jnp.zeros((3, 48)))
    np.testing.assert_allclose(by_probe[0], by_delta, rtol=1e-6)
    np.testing.assert_array_equal(kernel.positions_of(by_probe), idx)


def test_positions_of_transposes():
    """A weight stays at its row and column; both lists ascend; there and back again."""
    rng = np.random.default_rng(0)
    matrix, idx = rng.normal(size=(5, 7)).astype(np.float32), np.array([0, 3, 8, 20, 34], np.int32)
    theirs, values = tensors.to_torch(idx, matrix.reshape(-1)[idx], (5, 7))
    np.testing.assert_array_equal(matrix.T.reshape(-1)[theirs], values)
    assert np.all(np.diff(theirs) > 0) and theirs.dtype == np.int32
    again, back = tensors.from_torch(theirs, values, (5, 7))
    np.testing.assert_array_equal(again, idx)
    np.testing.assert_array_equal(back, matrix.reshape(-1)[idx])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Halves:
    """A kernel stored as two integers a weight, without loss."""

    high: jax.Array
    low: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.high.shape

    def dequantize(self, dtype: object) -> jax.Array:
        bits = (self.high.astype(jnp.uint32) << 16) | self.low.astype(jnp.uint32)
        return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)


def test_a_quantised_base_without_loss_is_the_dense_one():
    """Product and gradients bit for bit, in the layer scan and under rematerialisation too."""
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(2, 20, 20)).astype(np.float32)
    bits = dense.view(np.uint32)
    stored = Halves(jnp.asarray(bits >> 16, jnp.uint16), jnp.asarray(bits & 0xFFFF, jnp.uint16))
    idx = jnp.asarray([np.sort(rng.choice(400, 40, replace=False)) for _ in range(2)], jnp.int32)
    delta, x = jnp.asarray(rng.normal(size=(2, 40)), jnp.float32), jnp.asarray(rng.normal(size=(6, 20)), jnp.float32)
    static = kernel.Static(40, ("embed", "mlp"))

    def loss(kernels, delta, x):
        def layer(x, own):
            node = kernel.SpIELNode(own[1], own[2], None, static)
            return jnp.tanh(node.project(x, own[0], Context())[0]), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, (kernels, delta, idx))[0] ** 2)

    results = [jax.jit(jax.value_and_grad(loss, (1, 2)))(k, delta, x) for k in (jnp.asarray(dense), stored)]
    for want, got in zip(*map(jax.tree.leaves, results)):
        np.testing.assert_array_equal(want, got)
    assert np.abs(results[0][1][0]).max() > 1e-3
