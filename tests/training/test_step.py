"""What the step promises methods and objectives, each against the same thing computed without the step."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsft.adapters.full import Full
from jaxsft.adapters.lora import LoRA, LoRANode
from jaxsft.adapters.method import Base, Maintenance, Parts
from jaxsft.config import LoRAConfig, MeshConfig, OptimizerConfig, TrainConfig
from jaxsft.models import layout
from jaxsft.models.block import rms_norm
from jaxsft.models.decoder import Decoder
from jaxsft.models.projection import Context, project
from jaxsft.objectives.sft import SFT
from jaxsft.objectives.terms import Term
from jaxsft.sharding import make_mesh
from jaxsft.training import program as program_module
from jaxsft.training.loop import jit_maintenance
from jaxsft.training.optimizer import Optimizer, make_horizon
from jaxsft.training.state import Frozen, TrainState
from jaxsft.training.step import BoundModel, make_step
from tests.tiny import llama, make_batch, on_device, packed_rows, random_examples

ARCH = llama(num_hidden_layers=2)
DECODER = Decoder(ARCH, remat="block")  # reports must leave rematerialised layers too
PLAIN = Decoder(ARCH, remat="none")  # compiles faster
QUERY = ("stacks", "0", "0", "attn", "q_proj")


def descent(rate: float = 1.0) -> Optimizer:
    """Plain gradient descent, so that the parameters' change is the gradient."""
    return Optimizer(optax.identity(), lambda step, horizon: jnp.float32(rate))


@pytest.fixture(scope="module")
def base():
    return DECODER.init(jax.random.key(1))


@pytest.fixture(scope="module")
def batch():
    """Four rows of very unequal supervised weight."""
    batch = make_batch(packed_rows(random_examples(9, 10), 4, 32), 32, 5)
    batch.weights[2:] *= np.random.default_rng(0).random((2, 32)) < 0.2
    return on_device(batch)


def start(method, base, key: int = 0, **aux: Any) -> tuple[TrainState, Any]:
    parts = method.split(base, jax.random.key(5))
    opt_state = descent().transformation.init(parts.params)
    key_data = jax.random.key_data(jax.random.key(key))
    horizon = make_horizon(OptimizerConfig(), 10)
    state = TrainState(jnp.int32(0), parts.params, opt_state, key_data, horizon, {"method": parts.aux} | aux)
    return state, Frozen(parts.frozen)


# --- a method that uses the whole seam


class GainNode(NamedTuple):
    """y = (x * (1 + gain)) (W + probe), reporting the energy of its input and how often it was called."""

    gain: jax.Array
    probe: jax.Array

    def project(self, x, kernel, ctx):
        x = x * (1 + self.gain)
        energy = jnp.sum(jnp.where(ctx.valid[..., None], x, 0) ** 2)
        return project(x, kernel + self.probe, None, ctx)[0], {"energy": energy}


@dataclasses.dataclass(frozen=True)
class Gains(Base):
    """Trains a gain on the queries' input; asks for the gradient of the frozen kernel, and counts."""

    name = "gains"

    def split(self, base, key):
        kernel = layout.get(base, QUERY)["kernel"]
        params: dict = {}
        layout.put(params, QUERY, {"gain": 0.1 * jax.random.normal(key, kernel.shape[:2])})
        aux = {"gradient": jnp.zeros(kernel.shape), "seen": jnp.int32(2**24 + 1), "ages": jnp.arange(len(kernel))}
        return Parts(params, {"base": base}, aux)

    def axes(self, base_axes):
        layers, embed, heads = layout.get(base_axes, QUERY)["kernel"]
        params: dict = {}
        layout.put(params, QUERY, {"gain": (layers, embed)})
        aux = {"gradient": (layers, embed, heads), "seen": (), "ages": (layers,)}
        return Parts(params, {"base": base_axes}, aux)

    def probes(self, parts):
        return {"kernel": jnp.zeros(parts.aux["gradient"].shape)}

    def compose(self, parts, probes):
        gain = layout.get(parts.params, QUERY)["gain"]
        adapters: dict = {}
        layout.put(adapters, QUERY, GainNode(gain, probes["kernel"] if probes else jnp.zeros(len(gain))))
        return parts.frozen["base"], adapters

    def observe(self, parts, probe_gradients):
        aux = parts.aux
        gradient = aux["gradient"] + probe_gradients["kernel"]
        return {"gradient": gradient, "seen": aux["seen"] + 1, "ages": aux["ages"] + 1}

    def denominators(self, batch):
        return {"real_tokens": jnp.sum(batch.segment_ids > 0)}

    def terms(self, reports, batch, denominators):
        (report,) = reports
        return {"energy": Term(0.3, jnp.sum(layout.get(report, QUERY)["energy"]), denominators["real_tokens"])}

    def penalties(self, parts):
        return {"l2": Term(0.7, jnp.sum(layout.get(parts.params, QUERY)["gain"] ** 2), jnp.float32(1))}

    def maintenance(self):
        def apply(state, frozen):
            del frozen
            aux = state.aux["method"]
            reset = jax.tree.map(lambda gain: gain.at[0].set(0), state.params)
            ages = jnp.where(jnp.arange(len(aux["ages"])) == 0, 0, aux["ages"])
            return dataclasses.replace(state, params=reset, aux=state.aux | {"method": aux | {"ages": ages}}), {
                "ages": jnp.sum(ages)
            }

        return Maintenance(lambda step: step % 3 == 2, apply)


def without_the_seam(base, gain, delta, batch):
    """(loss without penalty, its two terms) of gains and kernel changes, from plain forward passes of a plain model."""
    kernel = (1 + gain)[..., None] * (layout.get(base, QUERY)["kernel"] + delta)
    changed = layout.map_leaves(lambda path, leaf: kernel if path == (*QUERY, "kernel") else leaf, base)
    hidden = DECODER.forward(changed, batch.tokens, batch.positions, batch.segment_ids).hidden
    log_probs = jax.nn.log_softmax(hidden @ base["head"]["kernel"])
    nll = -jnp.take_along_axis(log_probs, batch.targets[..., None], axis=-1)[..., 0]
    cross_entropy = jnp.sum(batch.weights * nll) / jnp.sum(batch.weights)
    # The input of layer 1's queries is what a model of layer 0 alone returns, its final norm being layer 1's.
    norms = base["stacks"]["0"]["0"]["input_norm"]["scale"]
    first = changed | {"stacks": jax.tree.map(lambda x: x[:1], changed["stacks"]), "norm": {"scale": norms[1]}}
    inputs = (
        rms_norm(base["embed"]["embedding"][batch.tokens], norms[0], ARCH.norm_eps, False),
        Decoder(llama(num_hidden_layers=1)).forward(first, batch.tokens, batch.positions, batch.segment_ids).hidden,
    )
    valid = batch.segment_ids > 0
    energy = sum(jnp.sum(jnp.where(valid[..., None], x * (1 + g), 0) ** 2) for x, g in zip(inputs, gain))
    energy = 0.3 * energy / jnp.sum(valid)
    return cross_entropy + energy, (cross_entropy, energy)


@pytest.fixture(scope="module")
def expected(base, batch):
    """Loss, terms and gradients by gain and kernel; the penalty 0.7 |gain|^2 has gradient 1.4 gain."""
    gain = layout.get(Gains().split(base, jax.random.key(5)).params, QUERY)["gain"]
    function = jax.jit(jax.value_and_grad(without_the_seam, argnums=(1, 2), has_aux=True))
    (value, terms), (by_gain, by_kernel) = function(
        base, gain, jnp.zeros(layout.get(base, QUERY)["kernel"].shape), batch
    )
    return value + 0.7 * jnp.sum(gain**2), terms, by_gain + 1.4 * gain, by_kernel


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_method_reaches_all_of_the_step(base, batch, expected, accumulate):
    loss, (cross_entropy, energy), by_gain, by_kernel = expected
    method = Gains()
    step = jax.jit(make_step(DECODER, method, SFT(chunk_size=16), descent(), accumulate))
    state, frozen = start(method, base)
    after, metrics = step(state, frozen, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/cross_entropy"], cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/energy"], energy, rtol=1e-5)
    close = lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    moved = jax.tree.map(lambda a, b: a - b, state.params, after.params)
    close(layout.get(moved, QUERY)["gain"], by_gain)
    close(after.aux["method"]["gradient"], by_kernel)
    assert np.abs(by_kernel).max() > 1e-3
    # Integers survive, beyond what float32 could hold, and are observed once a step.
    for name, want in (("seen", 2**24 + 2), ("ages", [1, 2])):
        assert after.aux["method"][name].dtype == jnp.int32
        np.testing.assert_array_equal(after.aux["method"][name], want)
    again, _ = step(after, frozen, batch)
    assert again.aux["method"]["seen"] == 2**24 + 3
    assert int(again.step) == 2


def test_maintenance_keeps_shardings_and_donates(base, batch, monkeypatch):
    """The loop's own path: built, compiled and run on a mesh, with the method's work between two steps."""
    monkeypatch.setattr(program_module, "make_method", lambda config, arch, steps: Gains())
    config = TrainConfig(batch_size=4)
    config.model.dtype = config.model.param_dtype = "float32"
    config.adapter.kind = "lora"  # an adapter: the base is not cast
    mesh = make_mesh(MeshConfig(1, 4, 2))
    program = program_module.build(config, ARCH, mesh, 10, batch)
    placed_base = jax.tree.map(lambda p, s: jax.device_put(np.array(p), s.sharding), base, program.base)
    state, frozen = program.initial(placed_base)
    assert state.aux["method"]["gradient"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    due, apply = jit_maintenance(program)
    assert [due(step) for step in range(1, 7)] == [False, True, False, False, True, False]
    with jax.set_mesh(mesh):
        placed = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), batch, program.batch)
        state, _ = program.step(state, frozen, placed)
        shardings, before = jax.tree.map(lambda x: x.sharding, state), jax.tree.map(np.asarray, state)
        maintained, figures = apply(state, frozen)
        assert figures == {"ages": 2}
        assert jax.tree.leaves(state.params)[0].is_deleted(), "the state is donated"
        assert jax.tree.map(lambda x: x.sharding, maintained) == shardings
        gain, was = (layout.get(s.params, QUERY)["gain"] for s in (maintained, before))
        np.testing.assert_array_equal(gain, np.concatenate([np.zeros_like(was[:1]), was[1:]]))
        np.testing.assert_array_equal(maintained.aux["method"]["ages"], [0, 2])
        np.testing.assert_array_equal(maintained.aux["method"]["gradient"], before.aux["method"]["gradient"])
        after, _ = program.step(maintained, frozen, placed)
        assert int(after.step) == 2
    assert program.step._cache_size() == 1, "maintenance must not make the step compile again"


def test_no_maintenance_by_default():
    assert Base().maintenance() is None and Base().update_mask({}) is None
    assert Base().penalties(None) == Base().terms([], None, {}) == Base().denominators(None) == {}


# --- the parameters' moving average, and the loss's options


def test_ema_in_closed_form(base, batch):
    """e_3 = d^3 p_0 + (1 - d) (d^2 p_1 + d p_2 + p_3); masked rows stay."""
    method, decay = Full(ARCH, ("layers.0", "embed")), 0.75
    optimizer = dataclasses.replace(descent(0.1), ema=decay)
    parts = method.split(base, jax.random.key(0))
    state, frozen = start(method, base, ema=parts.params)
    step = jax.jit(make_step(PLAIN, method, SFT(chunk_size=64), optimizer))
    seen = [state.params]
    for _ in range(3):
        state, _ = step(state, frozen, batch)
        seen.append(state.params)
    weights = [decay**3, (1 - decay) * decay**2, (1 - decay) * decay, 1 - decay]
    want = jax.tree.map(lambda *ps: sum(w * np.asarray(p, np.float64) for w, p in zip(weights, ps)), *seen)
    jax.tree.map(lambda got, w: np.testing.assert_allclose(got, w, rtol=1e-5, atol=1e-7), state.aux["ema"], want)
    kernel = state.aux["ema"]["stacks"]["0"]["0"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_array_equal(kernel[0], base["stacks"]["0"]["0"]["mlp"]["up_proj"]["kernel"][0])
    assert np.abs(kernel[1] - base["stacks"]["0"]["0"]["mlp"]["up_proj"]["kernel"][1]).max() > 1e-4


def test_options_of_the_loss_reach_it(base, batch):
    """Smoothing (1 - e) ce + e mean_v(-log p_v) and z-loss z lse^2, from dense logits; `nll` stays the bare one."""
    hidden = DECODER.forward(base, batch.tokens, batch.positions, batch.segment_ids).hidden
    logits = np.asarray(hidden @ base["head"]["kernel"], np.float64)
    lse = np.log(np.exp(logits).sum(-1))
    ce = lse - np.take_along_axis(logits, np.asarray(batch.targets)[..., None], -1)[..., 0]
    loss = 0.9 * ce + 0.1 * (lse - logits.mean(-1)) + 0.05 * lse**2
    mean = lambda values: np.sum(batch.weights * values) / np.sum(batch.weights)
    method = Full(ARCH, ("layers", "embed", "norm"))
    state, frozen = start(method, base)
    objective = SFT(z_loss=0.05, label_smoothing=0.1, chunk_size=32)
    _, metrics = jax.jit(make_step(PLAIN, method, objective, descent()))(state, frozen, batch)
    np.testing.assert_allclose(metrics["loss"], mean(loss), rtol=1e-5)
    np.testing.assert_allclose(metrics["nll"], mean(ce), rtol=1e-5)
    assert float(metrics["tokens"]) == np.sum(batch.segment_ids > 0)


# --- randomness


class SpyNode(NamedTuple):
    """Reports what LoRA's dropout at a half makes of ones; adds nothing."""

    layers: jax.Array

    def project(self, x, kernel, ctx):
        node = LoRANode(jnp.eye(8), jnp.eye(8), 1.0, 0.5)
        dropped, _ = node.project(jnp.ones((*x.shape[:-1], 8)), jnp.zeros((8, 8)), ctx)
        return project(x, kernel, None, ctx)[0], {"dropped": dropped}


def test_dropout_differs_by_layer_and_map_and_is_unbiased(base, batch):
    spy = SpyNode(jnp.zeros(2))
    adapters = {"stacks": {"0": {"0": {"attn": {"q_proj": spy, "o_proj": spy}, "mlp": {"up_proj": spy}}}}}

    @jax.jit
    def dropped(key, tokens):
        ctx = Context(key, batch.example_ids, batch.segment_ids > 0, batch.extras, True)
        out = DECODER.forward(base, tokens, batch.positions, batch.segment_ids, adapters=adapters, ctx=ctx)
        return jax.tree.leaves(out.aux)

    masks = [layer for map_ in dropped(jax.random.key(0), batch.tokens) for layer in np.asarray(map_)]
    assert len(masks) == 6  # three maps in two layers
    for i, mask in enumerate(masks):
        assert set(np.unique(mask)) == {0, 2}  # kept ones are scaled, so the mean stays
        assert mask.mean() == pytest.approx(1, abs=0.1)
        for other in masks[:i]:
            assert np.mean(mask == other) == pytest.approx(0.5, abs=0.1)
    for again, map_ in zip(dropped(jax.random.key(0), batch.tokens + 1), np.split(np.array(masks), 3)):
        np.testing.assert_array_equal(again, map_)
    for other, map_ in zip(dropped(jax.random.key(1), batch.tokens), np.split(np.array(masks), 3)):
        assert np.mean(np.asarray(other) == map_) == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def adapted(base):
    """LoRA with dropout, its weights not at zero."""
    method = LoRA(LoRAConfig(4, 16.0, dropout=0.3, targets=("layers.*.attn.[qv]_proj", "layers.*.mlp.up_proj")), ARCH)
    parts = method.split(base, jax.random.key(0))
    noise = jax.tree.map(lambda p: 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), parts.params)
    return method, parts._replace(params=noise)


def test_dropout_differs_by_step_and_micro_batch(base, adapted):
    """Two equal rows, one micro-batch each: with the same draw for both, their mean would be one row's loss."""
    method, parts = adapted
    row = random_examples(1, 16, seed=3)
    one, two = (on_device(make_batch([row] * rows, 16, 1)) for rows in (1, 2))

    def losses(batch, accumulate):
        step = jax.jit(make_step(PLAIN, method, SFT(chunk_size=16), descent(0.0), accumulate))

        def of_two_steps(key):
            state, frozen = start(method, base, key)
            state = dataclasses.replace(state, params=parts.params)
            state, first = step(state, frozen, batch)
            _, second = step(state, frozen, batch)
            return np.array([first["loss"], second["loss"]])

        return of_two_steps

    alone, pair = losses(one, 1), losses(two, 2)
    first = alone(0)
    assert abs(first[0] - first[1]) > 1e-3, "the same at every step"
    assert np.all(np.abs(first - pair(0)) > 1e-3), "the same in every micro-batch"
    np.testing.assert_array_equal(alone(0), first)
    assert np.all(np.abs(alone(1) - first) > 1e-3), "the seed changes nothing"


# --- the model as objectives see it


def logits_of(method, parts, batch, key=None, train=False, adapter=True, embed_noise=None):
    """Jitted, so that equal programs give equal bits; and how often the adapters reported."""

    @jax.jit
    def run(parts, batch, embed_noise):
        model = BoundModel(PLAIN, method, parts, {}, None if key is None else (key, key), train)
        out = model(batch, adapter=adapter, embed_noise=embed_noise)
        return out.head(out.head_params, out.hidden), len(model.reports)

    return [np.asarray(x) for x in run(parts, batch, embed_noise)]


def test_adapter_off_is_the_base_bit_for_bit(base, adapted, batch):
    method, parts = adapted

    @jax.jit
    def plain(base, batch):
        hidden = PLAIN.forward(base, batch.tokens, batch.positions, batch.segment_ids).hidden
        return PLAIN.head(PLAIN.head_params(base), hidden)

    off, reports = logits_of(method, parts, batch, jax.random.key(0), True, adapter=False)
    np.testing.assert_array_equal(off, plain(base, batch))
    assert reports == 0
    on, reports = logits_of(method, parts, batch, jax.random.key(0), True)
    assert np.abs(on - off).max() > 0.1 and reports == 1


def test_dropout_is_off_in_evaluation(adapted, batch):
    method, parts = adapted
    still = LoRA(dataclasses.replace(method.config, dropout=0.0), ARCH)
    want, _ = logits_of(still, parts, batch)
    for key in (None, jax.random.key(0)):
        np.testing.assert_array_equal(logits_of(method, parts, batch, key)[0], want)
    assert np.abs(logits_of(method, parts, batch, jax.random.key(0), True)[0] - want).max() > 1e-2


def test_embed_noise_is_added_to_the_embeddings(base):
    """A row in which every token occurs once: noise on its positions is noise on those rows of the table."""
    tokens = np.random.default_rng(0).permutation(np.arange(1, 64))[None, :24].astype(np.int32)
    batch = on_device(make_batch([[(tokens[0], np.ones(24, np.float32))]], 24, 1))
    noise = 0.5 * jax.random.normal(jax.random.key(2), (1, 24, ARCH.embed_dim))
    method = Full(ARCH)
    noisy, _ = logits_of(method, Parts(base, {}, {}), batch, embed_noise=noise)
    table = base["embed"]["embedding"].at[tokens[0]].add(noise[0])
    want, _ = logits_of(method, Parts(base | {"embed": {"embedding": table}}, {}, {}), batch)
    np.testing.assert_allclose(noisy, want, atol=1e-5)
    assert np.abs(noisy - logits_of(method, Parts(base, {}, {}), batch)[0]).max() > 0.1
