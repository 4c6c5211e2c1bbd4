"""Schedules against closed forms; optimizers against NumPy and against optax, layer by layer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsft.config import OptimizerConfig
from jaxsft.models import layout
from jaxsft.models.decoder import Decoder
from jaxsft.training.optimizer import make_horizon, make_optimizer, make_schedule
from tests.tiny import llama, make_batch, packed_rows, random_examples

PEAK = 2e-3


def curve(steps: int, **fields: object) -> np.ndarray:
    """The learning rates of a run and of a hundred steps after it."""
    config = OptimizerConfig(learning_rate=PEAK, **fields)
    rates = jax.vmap(make_schedule(config), (0, None))(jnp.arange(steps + 100), make_horizon(config, steps))
    return np.asarray(rates, np.float64)


SHAPES = {  # share of the decay that is done -> learning rate over the peak
    "constant": lambda done, last: 1.0,
    "linear": lambda done, last: 1 - (1 - last) * done,
    "cosine": lambda done, last: last + (1 - last) * (1 + math.cos(math.pi * done)) / 2,
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("warmup", "last"), [(0, 0.0), (10, 0.0), (10, 0.1)])
def test_schedules_in_closed_form(name, warmup, last):
    rates = curve(50, schedule=name, warmup_steps=warmup, final_ratio=last)
    for step, rate in enumerate(rates):
        done = min((step - warmup) / (50 - warmup), 1)
        want = step / warmup if step < warmup else SHAPES[name](done, last)
        assert rate == pytest.approx(PEAK * want, rel=1e-5, abs=1e-10), step


@pytest.mark.parametrize(("ratio", "decay"), [(0.2, 10), (0.0, 1), (0.9, 40), (7.0, 40)])
def test_wsd_stays_and_then_falls(ratio, decay):
    """The fall takes `decay_ratio` of the run, at least a step and at most what the warm-up leaves."""
    rates = curve(50, schedule="wsd", warmup_steps=10, decay_ratio=ratio, final_ratio=0.1)
    for step, rate in enumerate(rates):
        fallen = min(max(step - (50 - decay), 0) / decay, 1)
        want = step / 10 if step < 10 else 1 - 0.9 * fallen
        assert rate == pytest.approx(PEAK * want, rel=1e-5), step


@pytest.mark.parametrize(("ratio", "steps", "warmup"), [(0.03, 100, 3), (0.03, 90, 3), (0.03, 80, 2), (0.03, 10, 0)])
def test_warmup_ratio_is_rounded_to_whole_steps(ratio, steps, warmup):
    rates = curve(steps, schedule="constant", warmup_ratio=ratio)
    np.testing.assert_allclose(
        rates[: warmup + 1], PEAK * np.arange(warmup + 1) / warmup if warmup else PEAK, rtol=1e-6
    )
    assert np.all(rates[warmup:] == np.float32(PEAK))


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 5), (3, 5), (5, 5), (7, 5)])
def test_short_runs_have_sane_rates(name, steps, warmup):
    """A run shorter than its warm-up climbs all the way; no rate is ever negative, above the peak or not a number."""
    rates = curve(steps, schedule=name, warmup_steps=warmup)
    assert np.all((rates >= 0) & (rates <= PEAK * (1 + 1e-6)))
    climb = min(warmup, steps)
    np.testing.assert_allclose(rates[:climb], PEAK * np.arange(climb) / max(climb, 1), rtol=1e-6)


ARCH = llama()
SIZES = {  # wide enough that Adafactor factors the kernels
    "embed": {"embedding": (20, 130)},
    "stacks": {"0": {"0": {"attn": {"q_proj": {"kernel": (3, 128, 130)}}, "input_norm": {"scale": (3, 128)}}}},
    "norm": {"scale": (128,)},
}
CONFIG = {"learning_rate": 1.0, "schedule": "constant", "warmup_steps": 0, "max_grad_norm": 0.0, "b1": 0.8, "b2": 0.95}


def random_tree(seed: int) -> dict:
    """Layers of very different size, so that a statistic taken over several of them shows."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        sizes = np.array([1.0, 30.0, 0.02]).reshape(-1, *[1] * (len(shape) - 1)) if shape[0] == 3 else 1.0
        return sizes * rng.normal(size=shape)

    return jax.tree.map(lambda s: jnp.asarray(draw(s), jnp.float32), SIZES, is_leaf=lambda x: isinstance(x, tuple))


ADAM = lambda: optax.adam(1.0, b1=0.8, b2=0.95, eps=1e-8)
REFERENCES = {  # of one array of one layer; learning rate 1
    "adamw": lambda name: ADAM(),
    "lion": lambda name: optax.lion(1.0, b1=0.8, b2=0.95, weight_decay=0.0),
    "sm3": lambda name: optax.chain(optax.scale_by_sm3(b1=0.8, b2=0.95), optax.scale(-1.0)),
    "adafactor": lambda name: optax.adafactor(1.0, multiply_by_parameter_scale=False, momentum=0.8),
    "muon": lambda name: optax.contrib.muon(1.0, beta=0.8, consistent_rms=0.2) if "kernel" in name else ADAM(),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_stack_is_updated_layer_by_layer(name):
    params = random_tree(0)
    ours = make_optimizer(OptimizerConfig(name=name, **CONFIG), ARCH, params).transformation
    update, state = jax.jit(ours.update), ours.init(params)
    alone = layout.unstack(ARCH, params)
    references = {path: REFERENCES[name](path) for path in alone}
    states = {path: references[path].init(array) for path, array in alone.items()}
    assert len(alone) == 8
    for seed in range(1, 4):
        directions, state = update(random_tree(seed), state, params)
        for path, gradient in layout.unstack(ARCH, random_tree(seed)).items():
            want, states[path] = references[path].update(gradient, states[path], alone[path])
            ours_alone = layout.unstack(ARCH, directions)[path]
            np.testing.assert_allclose(-ours_alone, want, rtol=2e-4, atol=1e-5 * np.abs(want).max(), err_msg=path)


def test_muon_directions_are_nearly_orthogonal():
    """All singular values are about 0.2 sqrt(max(in, out)): a root mean square of 0.2 (arXiv:2502.16982, eq. 4)."""
    params = random_tree(0)
    optimizer = make_optimizer(OptimizerConfig(name="muon", **CONFIG), ARCH, params).transformation
    directions, _ = jax.jit(optimizer.update)(random_tree(1), optimizer.init(params), params)
    for layer in np.asarray(directions["stacks"]["0"]["0"]["attn"]["q_proj"]["kernel"]):
        values = np.linalg.svd(layer, compute_uv=False) / (0.2 * math.sqrt(130))
        assert np.mean((values > 0.6) & (values < 1.3)) > 0.95
        assert np.sqrt(np.mean(layer**2)) == pytest.approx(0.2, rel=0.15)


def test_adamw_in_numpy():
    """Loshchilov & Hutter 2019 (arXiv:1711.05101), algorithm 2, after clipping by the global norm."""
    fields = CONFIG | {"learning_rate": 0.1, "max_grad_norm": 0.7, "weight_decay": 0.3, "schedule": "linear"}
    config = OptimizerConfig(**fields, no_decay=("*norm*", "layers.1.attn", "embed"))
    params = random_tree(0)
    optimizer = make_optimizer(config, ARCH, params)
    state, update = optimizer.transformation.init(params), jax.jit(optimizer.transformation.update)

    want = {path: np.asarray(array, np.float64) for path, array in layout.unstack(ARCH, params).items()}
    first, second = ({path: np.zeros_like(array) for path, array in want.items()} for _ in range(2))
    decayed = {"layers.0.attn.q_proj.kernel", "layers.2.attn.q_proj.kernel"}
    assert decayed < want.keys()
    for step in range(3):
        gradients = random_tree(step + 1)
        directions, state = update(gradients, state, params)
        rate = optimizer.schedule(jnp.int32(step), make_horizon(config, 4))
        params = optax.apply_updates(params, jax.tree.map(lambda d, rate=rate: -rate * d, directions))

        flat = {path: np.asarray(g, np.float64) for path, g in layout.unstack(ARCH, gradients).items()}
        norm = math.sqrt(sum(np.sum(g**2) for g in flat.values()))
        for path, g in flat.items():
            g = g * min(1, 0.7 / norm)
            first[path] = 0.8 * first[path] + 0.2 * g
            second[path] = 0.95 * second[path] + 0.05 * g**2
            unbiased = first[path] / (1 - 0.8 ** (step + 1)), second[path] / (1 - 0.95 ** (step + 1))
            direction = unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8) + 0.3 * (path in decayed) * want[path]
            want[path] = want[path] - 0.1 * (1 - step / 4) * direction
    for path, array in layout.unstack(ARCH, params).items():
        np.testing.assert_allclose(array, want[path], rtol=2e-5, atol=2e-6, err_msg=path)


@pytest.fixture(scope="module")
def model_loss():
    """Parameters of a tiny model, and its loss with gradient, those of layer 1 masked as the step masks frozen rows."""
    decoder = Decoder(ARCH, remat="none")
    batch = make_batch(packed_rows(random_examples(6, 10), 2, 32), 32, 4)

    def loss(params):
        hidden = decoder.forward(params, batch.tokens, batch.positions, batch.segment_ids).hidden
        log_probs = jax.nn.log_softmax(decoder.head(params, hidden))
        nll = -jnp.take_along_axis(log_probs, batch.targets[..., None], axis=-1)[..., 0]
        return jnp.sum(batch.weights * nll) / jnp.sum(batch.weights)

    @jax.jit
    def masked(params):
        value, gradient = jax.value_and_grad(loss)(params)
        return value, gradient | {"stacks": jax.tree.map(lambda g: g.at[1].set(0), gradient["stacks"])}

    return decoder.init(jax.random.key(0)), masked


RATES = {"adamw": 1e-2, "lion": 2e-3, "sm3": 5e-2, "adafactor": 1e-2, "muon": 1e-2}


@pytest.mark.parametrize("name", RATES)
def test_learns_and_keeps_no_moments_of_frozen_layers(name, model_loss):
    params, gradient = model_loss
    config = OptimizerConfig(name, RATES[name], "constant", warmup_steps=0, b2=0.99)
    transformation = make_optimizer(config, ARCH, params).transformation
    start, losses = transformation.init(params), []
    state = start

    @jax.jit
    def update(gradients, state, params):
        directions, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, jax.tree.map(lambda d: -RATES[name] * d, directions)), state

    for _ in range(20):
        value, gradients = gradient(params)
        losses.append(float(value))
        params, state = update(gradients, state, params)
    assert losses[-1] < losses[0] - 0.5, losses
    moved = 0
    for now, then in zip(jax.tree.leaves(state), jax.tree.leaves(start)):
        if now.ndim > 1 and now.shape[0] == 3:  # stacked moments; Adafactor's keep the 1e-30 that it adds to squares
            np.testing.assert_allclose(now[1], then[1], atol=1e-25)
            moved += bool(np.any(now[0] != then[0]) and np.any(now[2] != then[2]))
    assert moved >= 9, "the other layers have moments"
