"""SpIEL as a tuning method: on a whole model, over whole steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.registry import make_method
from jaxsft.adapters.spiel import budget
from jaxsft.config import AdapterConfig, MeshConfig, OptimizerConfig, SpIELConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh
from jaxsft.training.loop import jit_maintenance
from jaxsft.training.optimizer import make_horizon, make_optimizer
from jaxsft.training.program import build
from jaxsft.validation import validate
from tests.tiny import llama, logits, make_batch, packed_rows, random_examples

ARCH = llama()
DECODER = Decoder(ARCH, remat="none")
QUERY = ("stacks", "0", "0", "attn", "q_proj")
RANK = 2
WEIGHTS = sum(RANK * (a + b) for a, b in ((32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32))) * 3


def config(steps: int = 10, accumulate: int = 1, **changes: object) -> TrainConfig:
    config = TrainConfig(batch_size=8, accumulate=accumulate, steps=steps)
    config.model.dtype = config.model.param_dtype = "float32"
    settings = {"lora_rank": RANK, "reselect_every": 4, "phase": 2} | changes
    config.adapter = AdapterConfig("spiel", spiel=SpIELConfig(**settings))
    config.optimizer.name = "sm3" if config.adapter.spiel.variant == "ma" else "adamw"
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-2, 0
    config.optimizer.max_grad_norm = 0.0
    config.objective.chunk_size = 32
    return config


def batch_of(seed: int):
    examples = random_examples(24, 20, seed=seed)
    return make_batch(packed_rows(examples, 8, 48), 48, 12, examples)


def started(config: TrainConfig, mesh=None):
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    program = build(config, ARCH, mesh, config.steps, batch_of(0))
    return program, *program.initial(program.decoder.init(jax.random.key(1)))


def run(config: TrainConfig, mesh=None, stop: int | None = None):
    """The states after each step, and the losses and figures on the way; the support changes where it is due."""
    program, state, frozen = started(config, mesh)
    maintenance, states, lines = jit_maintenance(program), [jax.tree.map(np.asarray, state)], []
    with jax.set_mesh(program.mesh):
        for i in range(1, (stop or config.steps) + 1):
            batch = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), batch_of(i), program.batch)
            state, metrics = program.step_at(i)(state, frozen, batch)
            before = jax.tree.map(np.asarray, state)
            if maintenance.due(i):
                state, figures = maintenance.apply(state, frozen.method)
                metrics = metrics | figures
            states.append((before, jax.tree.map(np.asarray, state)) if maintenance.due(i) else before)
            lines.append({name: float(value) for name, value in metrics.items()})
    return program, frozen, states, lines


@pytest.fixture(scope="module")
def ag():
    return run(config())


def moments_of(state):
    """The ages and moments in an optimizer's state."""
    has_ages = lambda node: hasattr(node, "age")
    return next(node for node in jax.tree.leaves(state.opt_state, is_leaf=has_ages) if has_ages(node))


def lists(program, state):
    """(path, idx, delta) of every layer, less the padding."""
    for path, idx in layout.leaves(layout.map_leaves(lambda p, x: x, state.aux["method"]["maps"])):
        if path[-1] == "idx":
            count = program.method.counts(program.method.shape(path[:-1]))[0]
            delta = layout.get(state.params, path[:-1])["delta"]
            for layer in range(len(idx)):
                yield (path[:-1], layer), idx[layer][:count], delta[layer][:count]


def test_maps_that_are_not_tuned_are_merged_too():
    """Over a quantised base they come out plain, like the others."""
    own = config(targets=("layers.*.attn.*_proj",))
    own.model.quantization = "nf4"
    program = build(own, ARCH, make_mesh(MeshConfig(), jax.devices()[:1]), own.steps, batch_of(0))
    state, frozen = program.initial(program.random_base())
    merged = program.method.merge(frozen.parts(state.params, state.aux["method"]))
    for path, kernel in layout.leaves(frozen.method["base"]):
        plain = kernel.dequantize(None) if hasattr(kernel, "dequantize") else kernel
        np.testing.assert_array_equal(layout.get(merged, path), plain)


def test_a_run_that_goes_on_from_anothers_adapter():
    """Gathers from nothing, and refuses terms that its start would be compared by."""
    own = config()
    method = make_method(own, ARCH, 10)
    left = {"maps": {}, "samples": np.ones((), np.int32)}
    assert method.restarted(left) == {"maps": {}, "samples": 0}
    own.adapter.start = "elsewhere"
    make_method(own, ARCH, 10)
    own.objective.regularizers.l1 = 0.1
    with pytest.raises(UserError, match="brings deltas that a change of the support moves"):
        make_method(own, ARCH, 10)
    own.adapter.spiel.dtype, own.optimizer.ema = "bfloat16", 0.9
    with pytest.raises(UserError, match="in 'bfloat16' an average stands still"):
        make_method(own, ARCH, 10)
    own.adapter.spiel.dtype = "float32"
    own.objective.regularizers.l1_on = "weights"
    make_method(own, ARCH, 10)
    own.objective.regularizers.l2_to_start = 0.1
    with pytest.raises(UserError, match="brings deltas that a change of the support moves"):
        make_method(own, ARCH, 10)


def test_a_fresh_support_is_the_base_bit_for_bit():
    program, state, frozen = started(config())
    parts = frozen.parts(state.params, state.aux["method"])
    tokens = batch_of(0).tokens
    np.testing.assert_array_equal(logits(DECODER, tokens, *program.method.compose(parts, {})),
                                  logits(DECODER, tokens, frozen.method["base"]))  # fmt: skip
    for path, kernel in layout.leaves(program.method.merge(parts)):
        np.testing.assert_array_equal(kernel, layout.get(frozen.method["base"], path))


def test_the_budget():
    """Floors of equal shares: LoRA's parameters less a few, the same share of every matrix."""
    program, state, _ = started(config())
    found = list(lists(program, state))
    assert len(found) == 3 * 7
    total, entries = 0, budget.targeted(ARCH, program.config.adapter.spiel.targets)
    for (path, _), idx, delta in found:
        size = np.prod(program.method.shape(path))
        assert len(idx) == int(WEIGHTS * size / entries)
        assert idx.dtype == np.int32 and np.all(np.diff(idx) > 0) and idx[0] >= 0 and idx[-1] < size
        assert not np.any(delta)
        total += len(idx)
    assert WEIGHTS - 21 < total <= WEIGHTS
    every = sum(leaf.size for leaf in jax.tree.leaves(DECODER.abstract_params()))
    shares = {"weights": 1234, "density": 0.03, "lora_rank": 3}
    totals = [budget.total(ARCH, SpIELConfig(**{name: value})) for name, value in shares.items()]
    assert totals == [1234, int(0.03 * every), WEIGHTS * 3 // RANK]
    assert budget.total(ARCH, SpIELConfig()) == every // 100
    draws = [idx for (path, _), idx, _ in found if path == QUERY]
    assert len({tuple(draw.tolist()) for draw in draws}) == 3, "a layer of a stack has its own"
    pooled = np.concatenate(draws) / 1024
    assert abs(pooled.mean() - 0.5) < 0.1 and pooled.max() > 0.9


def dense_gradient(program, frozen, state, batch):
    """Of the plain loss by the merged kernels, by jax."""
    merged = program.method.merge(frozen.parts(state.params, state.aux["method"]))

    def loss(params):
        out = DECODER.forward(params, batch.tokens, batch.positions, batch.segment_ids)
        log_probs = jax.nn.log_softmax(DECODER.head(params, out.hidden))
        nll = -jnp.take_along_axis(log_probs, batch.targets[..., None], axis=-1)[..., 0]
        return jnp.sum(batch.weights * nll) / jnp.sum(batch.weights)

    return jax.grad(loss)(merged)


def at(path, tree):
    """A kernel's entries as rows of layers."""
    return np.asarray(layout.get(tree, path)["kernel"]).reshape(3, -1)


@pytest.mark.parametrize("optimizer", ["adamw", "sm3"])
def test_it_is_full_fine_tuning_under_a_mask(optimizer):
    """Without a change of support, W + mask * D with the same optimizer moves alike, under weight decay too."""
    settings = config(3, variant="ma" if optimizer == "sm3" else "ag", reselect_every=50, phase=40)
    settings.optimizer.weight_decay = 3.0
    program, frozen, states, _ = run(settings)
    first, last = states[0], states[-1]
    base, method = frozen.method["base"], program.method
    dense = {path: np.zeros_like(at(path, base)) for path in {p for (p, _), *_ in lists(program, first)}}
    masks = {path: np.zeros_like(dense[path]) for path in dense}
    for (path, layer), idx, _ in lists(program, first):
        masks[path][layer, idx] = 1
    shapes = {path: (3, *method.shape(path)) for path in dense}
    moments = {path: [np.zeros_like(dense[path]) for _ in range(2)] for path in dense}
    sums = {path: [np.zeros((3, 1, shapes[path][2])), np.zeros((3, shapes[path][1], 1))] for path in dense}
    b1, b2, eps = settings.optimizer.b1, settings.optimizer.b2, settings.optimizer.eps
    for t in range(1, 4):
        rate = float(program.optimizer.schedule(t - 1, make_horizon(settings.optimizer, settings.steps)))
        tuned = layout.map_leaves(
            lambda p, x: x + (masks[p[:-1]] * dense[p[:-1]]).reshape(x.shape) if p[:-1] in dense else x, base
        )
        state = dataclasses.replace(first, params=jax.tree.map(np.zeros_like, first.params))
        gradient = dense_gradient(program, dataclasses.replace(frozen, method={"base": tuned}), state, batch_of(t))
        for path in dense:
            g = at(path, gradient) * masks[path]
            if optimizer == "adamw":
                m, v = moments[path] = [b1 * moments[path][0] + (1 - b1) * g, b2 * moments[path][1] + (1 - b2) * g * g]
                direction = m / (1 - b1**t) * np.sqrt(1 - b2**t) / (np.sqrt(v) + eps)
            else:
                matrix = g.reshape(shapes[path])
                nu = np.where(matrix != 0, np.minimum(*sums[path]) + matrix**2, 0)
                sums[path] = [np.maximum(s, nu.max(axis, keepdims=True)) for s, axis in zip(sums[path], (1, 2))]
                direction = (matrix / np.sqrt(nu + eps)).reshape(g.shape)
            moved = dense[path] - rate * direction
            dense[path] = moved - rate * 3.0 * moved
    for (path, layer), idx, delta in lists(program, last):
        assert np.abs(delta).max() > 1e-3
        np.testing.assert_allclose(delta, dense[path][layer, idx], rtol=2e-3, atol=2e-6, err_msg=str(path))


def test_weight_decay_comes_after_the_move():
    """Gradients of 1 twice, at a rate of 0.1 and a decay of 0.5; without gradient a delta shrinks by that alone."""
    method = make_method(config(), ARCH, 10)
    settings = OptimizerConfig(eps=1e-6, weight_decay=0.5, max_grad_norm=0.0)
    params = {"layers": {"delta": jnp.zeros((1, 1))}}
    transformation = make_optimizer(settings, ARCH, params, method).transformation
    state, values = transformation.init(params), []
    for gradient in (1.0, 1.0):
        direction, state = transformation.update(
            {"layers": {"delta": jnp.full((1, 1), gradient)}}, state, params, learning_rate=0.1, aux={}
        )
        params = jax.tree.map(lambda p, d: p - 0.1 * d, params, direction)
        values.append(float(params["layers"]["delta"][0, 0]))
    np.testing.assert_allclose(values, [-0.0949964, -0.1852435], atol=1e-6)
    state, params = transformation.init(params), {"layers": {"delta": jnp.full((1, 1), 2.0)}}
    direction, _ = transformation.update(jax.tree.map(jnp.zeros_like, params), state, params, learning_rate=0.1, aux={})
    np.testing.assert_allclose(2.0 - 0.1 * direction["layers"]["delta"], 2.0 * (1 - 0.1 * 0.5), rtol=1e-6)


@pytest.mark.parametrize(("accumulate", "parity"), [(1, False), (4, False), (1, True), (4, True)])
def test_statistics_are_of_the_dense_gradient(accumulate, parity):
    """Candidates are the largest entries of the first step's gradient, or of its first micro-batch, and sums are over
    steps, or over micro-batches; against jax's own gradient of the merged model."""
    settings = config(accumulate=accumulate, parity=parity)
    settings.optimizer.learning_rate = 1e-9
    program, frozen, states, _ = run(settings, stop=1)
    gradients = [dense_gradient(program, frozen, states[0], batch_of(1))]
    if parity and accumulate > 1:
        batch = batch_of(1)
        gradients = []
        for i in range(accumulate):
            part = jax.tree.map(lambda x, i=i: x[i::accumulate], batch)
            share = part.weights.sum() / batch.weights.sum()
            g = dense_gradient(program, frozen, states[0], part)
            gradients.append(jax.tree.map(lambda g, share=share: g * share, g))
    maps = states[1].aux["method"]["maps"]
    assert states[1].aux["method"]["samples"] == len(gradients)
    for (path, layer), idx, _ in lists(program, states[0]):
        k, held = len(idx), layout.get(maps, path)
        every = np.stack([at(path, g)[layer] for g in gradients])
        got = held["candidates"][layer][:k]
        assert set(got.tolist()) == set(np.argsort(-np.abs(every[0]))[:k].tolist())
        np.testing.assert_allclose(held["sum"][layer][:k], every[:, got].sum(0), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(held["square"][layer][:k], (every[:, got] ** 2).sum(0), rtol=2e-3, atol=1e-9)


def test_what_a_change_does(ag):
    """At steps 2, 6 and 10: n = int(k p) leave at most, newcomers are zero, the others keep value and moments."""
    program, _, states, lines = ag
    for step, share in ((2, 1.0), (6, 0.2 * 0.4), (10, 0.0)):
        (before, after), replaced, total = states[step], 0, 0
        moments = [moments_of(x) for x in (before, after)]
        for ((path, layer), old, was), (_, new, now) in zip(lists(program, before), lists(program, after)):
            n = int(len(old) * share)
            smallest = set(old[np.argsort(np.abs(was))[:n]].tolist())
            gone, come = set(old.tolist()) - set(new.tolist()), set(new.tolist()) - set(old.tolist())
            assert gone <= smallest and len(gone) == len(come) <= n
            assert np.all(np.diff(new) > 0) and len(new) == len(old)
            assert come <= set(layout.get(before.aux["method"]["maps"], path)["candidates"][layer].tolist())
            values, held = dict(zip(old.tolist(), was)), dict(zip(new.tolist(), now))
            assert all(held[p] == 0 for p in come) and all(held[p] == values[p] for p in held.keys() - come)
            age, mu = ([layout.get(getattr(m, name), path)["delta"][layer] for m in moments] for name in ("age", "mu"))
            kept = {p: (age[0][i], mu[0][i]) for i, p in enumerate(old.tolist())}
            for i, p in enumerate(new.tolist()):
                assert (age[1][i], mu[1][i]) == kept[p] if p in kept else age[1][i] == 2 + 1 and mu[1][i] != 0
            replaced, total = replaced + len(come), total + len(new)
        assert after.aux["method"]["samples"] == 0
        np.testing.assert_allclose(lines[step - 1]["support/replaced"], replaced / total, rtol=1e-6)
        assert (replaced > 0) == (share > 0)
    assert "support/replaced" not in lines[2]
    assert lines[5]["support/replaced/attn.q_proj"] > 0
    assert lines[1]["support/since_first"] == 1.0 > lines[5]["support/since_first"] > 0.9
    assert 0 < lines[5]["support/forgotten"] < 0.2 < lines[1]["support/forgotten"]


def test_the_model_forgets_what_is_dropped(ag):
    """The kernels change by minus the dropped deltas and by nothing else."""
    program, frozen, states, _ = ag
    for step in (2, 6):
        old, new = (program.method.merge(frozen.parts(s.params, s.aux["method"])) for s in states[step])
        change = {path: np.zeros_like(at(path, old)) for (path, _), *_ in lists(program, states[step][0])}
        for ((path, layer), idx, delta), (_, kept, _) in zip(*(lists(program, s) for s in states[step])):
            gone = ~np.isin(idx, kept)
            change[path][layer, idx[gone]] = -delta[gone]
        for path, want in change.items():
            np.testing.assert_allclose(at(path, new) - at(path, old), want, atol=3e-8)
        assert max(np.abs(want).max() for want in change.values()) > 1e-3


def test_merged_is_unmerged(ag):
    program, frozen, states, _ = ag
    state = states[7]
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.asarray(x),
            frozen.parts(state.params, state.aux["method"]),
        )
        tokens = batch_of(0).tokens
        unmerged = logits(DECODER, tokens, *program.method.compose(wide, {}))
        merged, plain = (logits(DECODER, tokens, tree) for tree in (program.method.merge(wide), wide.frozen["base"]))
    np.testing.assert_allclose(merged, unmerged, rtol=0, atol=1e-12)
    assert np.abs(unmerged - plain).max() > 0.01


@pytest.fixture(scope="module", params=["ag", "ma"])
def alone(request):
    """The settings of a variant, and its run on one device."""
    settings = config(7, variant=request.param)
    return settings, run(settings)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_devices_do_not_change_the_support(alone, accumulate):
    """The same positions and deltas after two changes as on one device, from four micro-batches or one."""
    settings, alone = alone
    split = run(dataclasses.replace(settings, accumulate=accumulate), make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4]))
    for ((path, _), idx, delta), (_, other, values) in zip(*(lists(r[0], r[2][7]) for r in (alone, split))):
        np.testing.assert_array_equal(idx, other, err_msg=str(path))
        np.testing.assert_allclose(delta, values, rtol=1e-3, atol=1e-6, err_msg=str(path))
    assert sum(line.get("support/replaced", 0) > 0 for line in alone[3]) == 2


def test_parity_phases_have_their_extra_step():
    """The second change of the authors' clock is of three steps where the first was of two, and ages are one less."""
    program, _, states, _ = run(config(8, parity=True))
    assert [program.method.stage(t) for t in range(1, 9)] == [
        "gather",
        "gather",
        "",
        "gather",
        "gather",
        "gather",
        "",
        "",
    ]
    assert states[6][0].aux["method"]["samples"] == 3
    own = moments_of(states[2][1])
    assert {int(a.max()) for a in jax.tree.leaves(own.age)} <= {2, 3} and 2 in np.unique(jax.tree.leaves(own.age)[0])


def test_the_average_follows_its_weights():
    settings = config(7)
    settings.optimizer.ema = 0.5
    program, _, states, _ = run(settings)
    before, after = states[6]
    for (path, layer), idx, _ in lists(program, before):
        new = layout.get(after.aux["method"]["maps"], path)["idx"][layer]
        old = dict(zip(idx.tolist(), layout.get(before.aux["ema"], path)["delta"][layer]))
        average = layout.get(after.aux["ema"], path)["delta"][layer][: len(idx)]
        assert [old.get(p, 0.0) for p in new[: len(idx)].tolist()] == average.tolist()


def test_brain_floats():
    """Deltas of bfloat16; moments float32 and ages whole, which go on counting."""
    *_, last = run(config(5, dtype="bfloat16"))[2]
    assert {leaf.dtype for leaf in jax.tree.leaves(last.params)} == {jnp.dtype(jnp.bfloat16)}
    own = moments_of(last)
    assert {leaf.dtype for leaf in jax.tree.leaves((own.mu, own.nu))} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(own.age)} == {np.dtype(np.int32)}
    assert max(leaf.max() for leaf in jax.tree.leaves(own.age)) == 6


def test_memory_is_of_the_tuned_weights():
    """At most 24 bytes a weight and 12 a candidate; a gradient step adds less than the dense gradients."""
    program, state, _ = started(config(lora_rank=1))
    weights = sum(len(idx) for _, idx, _ in lists(program, jax.tree.map(np.asarray, state)))
    held = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state, state.aux)))
    gradient = 4 * weights
    padding = 1.15  # of short lists, at most 7 in each
    assert held + gradient <= padding * weights * (24 + 12)
    maps = state.aux["method"]["maps"]
    candidates = sum(x.nbytes for p, x in layout.leaves(maps) if p[-1] != "idx")
    assert held - candidates + gradient <= padding * weights * 24


def test_one_dense_gradient_lives_at_a_time():
    """The temporaries of a step grow by far less than a dense gradient with each layer, also when it gathers."""
    sizes = {}
    for layers in (4, 16):
        arch = llama(num_hidden_layers=layers, hidden_size=128, intermediate_size=512, head_dim=32)
        settings = config(density=0.01, lora_rank=0)
        settings.model.remat = "block"
        program = build(settings, arch, make_mesh(MeshConfig(), jax.devices()[:1]), 10, batch_of(0))
        for stage in ("", "gather"):
            sizes[stage, layers] = program.compile(stage).memory_analysis().temp_size_in_bytes
    layer = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 512)
    inputs = 4 * 8 * 48 * 128  # of a layer, which rematerialisation keeps
    for stage in ("", "gather"):
        assert sizes[stage, 16] - sizes[stage, 4] < 12 * (inputs + 0.3 * layer)


def test_a_planted_support_is_found():
    """Twelve weights of a matrix were changed; least squares finds them, and the loss goes to nothing."""
    from jaxsft.adapters.spiel import kernel, selection
    from jaxsft.adapters.spiel.optimizer import aged_adam

    rng, size, k = np.random.default_rng(0), 16 * 24, 12
    matrix, x = rng.normal(size=(16, 24)), jnp.asarray(rng.normal(size=(256, 16)), jnp.float32)
    planted = np.sort(rng.choice(size, k, replace=False))
    changed = matrix.copy()
    changed.flat[planted] += rng.choice([-1, 1], k) * rng.uniform(0.5, 1.5, k)
    matrix, y = jnp.asarray(matrix, jnp.float32), x @ jnp.asarray(changed, jnp.float32)
    idx, delta = jnp.asarray(np.sort(rng.choice(size, k, replace=False)), jnp.int32), jnp.zeros(k)
    optimizer = aged_adam(0.9, 0.999, 1e-8)
    static, state = kernel.Static(k, ("embed", "mlp")), optimizer.init(delta)
    overlaps = [len(set(idx.tolist()) & set(planted.tolist()))]

    @jax.jit
    def gradients(delta, idx, candidates, fresh):
        def loss(delta, probe):
            watch = kernel.Watch(probe, candidates, fresh)
            return jnp.mean((kernel._product(static, x, matrix, delta, idx, watch) - y) ** 2)

        return jax.value_and_grad(loss, (0, 1))(delta, jnp.zeros((3, k)))

    candidates = idx
    for t in range(1, 301):
        loss, (g, seen) = gradients(delta, idx, candidates, jnp.bool_(t % 20 == 1))
        candidates = kernel.positions_of(seen)
        direction, state = optimizer.update(g, state)
        delta = delta - 0.03 * direction
        if t % 20 == 5:
            n = jnp.int32(k if t == 5 else int(k * 0.4 * (1 - t / 300)))
            taken = selection.by_gradient(idx, delta, candidates, jnp.abs(seen[0]), n, size)
            idx, delta = jnp.where(taken >= 0, candidates[taken], idx), jnp.where(taken >= 0, 0, delta)
            order = jnp.argsort(idx)
            idx, delta, state = idx[order], delta[order], optimizer.init(delta)
            overlaps.append(len(set(idx.tolist()) & set(planted.tolist())))
    assert overlaps[-1] == k > 4 * overlaps[0] and loss < 1e-4, (overlaps, loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": 100}, "both weights and lora_rank"),
        ({"lora_rank": 0, "weights": 3}, "which is 0 in a matrix of"),
        ({"lora_rank": 200}, "more than none and less than all"),
        ({"phase": 4}, r"phase is 4, which does not fit .*reselect_every = 4"),
        ({"phase": 3, "parity": True}, r"phase is 3, which does not fit"),
        ({"targets": ("head",)}, "targets names head; SpIEL tunes weights of linear maps in layers alone"),
        ({"targets": ("*",)}, "targets names embed; SpIEL tunes"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_method(config(**changes), ARCH, 10)


@pytest.mark.parametrize(("variant", "name"), [("ag", "sm3"), ("ma", "adamw"), ("ag", "lion")])
def test_another_optimizer_is_refused(variant, name):
    settings = config(variant=variant)
    settings.optimizer.name = name
    with pytest.raises(UserError, match=rf"config\.optimizer\.name is '{name}', but the variant '{variant}'"):
        validate(settings)
    validate(config(variant=variant))
