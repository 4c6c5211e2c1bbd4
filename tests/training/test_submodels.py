"""K sub-models at once are what K runs make, one by one."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsft.config import (
    AdapterConfig,
    LoRAConfig,
    LoRAMoEConfig,
    MeshConfig,
    OptimizerConfig,
    SpIELConfig,
    TrainConfig,
)
from jaxsft.errors import UserError
from jaxsft.objectives.registry import make_objective
from jaxsft.sharding import make_mesh
from jaxsft.training import submodels
from jaxsft.training.loop import jit_maintenance
from jaxsft.training.optimizer import Optimizer, make_horizon, make_schedule
from jaxsft.training.program import abstract_batch, build
from jaxsft.training.step import make_step
from tests.tiny import llama, make_batch, packed_rows, random_examples

ROWS, LENGTH, SLOTS = 4, 32, 6
LENGTHS = (20, 12, 20, 7)


def config() -> TrainConfig:
    config = TrainConfig(batch_size=ROWS)
    config.adapter.kind, config.adapter.lora = "lora", LoRAConfig(rank=2, alpha=8.0, dropout=0.1)
    config.optimizer = OptimizerConfig(learning_rate=1e-2, warmup_ratio=0.2, max_grad_norm=0.5)
    config.objective.chunk_size = 32
    return config


def batch_of(member: int, step: int):
    """A batch of a sub-model's own data."""
    examples = random_examples(2 * ROWS, 14, seed=100 * member + step)
    return make_batch(packed_rows(examples, ROWS, LENGTH), LENGTH, SLOTS, examples)


def stacked(step: int):
    """The batch of all; that of a finished one is empty."""
    empty = jax.tree.map(np.zeros_like, batch_of(0, 0))
    return submodels.stack([batch_of(k, step) if step < LENGTHS[k] else empty for k in range(len(LENGTHS))])


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def begun(lengths, mesh):
    program = build(config(), llama(), mesh, lengths, batch_of(0, 0))
    return program, *program.initial(program.decoder.init(jax.random.key(1)))


def all_at_once(mesh):
    """Losses [steps, K], every state, and the program."""
    program, state, frozen = begun(LENGTHS, mesh)
    losses, states = [], []
    with jax.set_mesh(mesh):
        for step in range(max(LENGTHS)):
            state, metrics = program.step(state, frozen, submodels.on_devices(stacked(step), mesh))
            losses.append(np.asarray(metrics["loss"]))
            states.append(jax.device_get(state))
    assert program.step._cache_size() == 1
    return np.array(losses), states, program


@pytest.fixture(scope="module")
def together():
    return all_at_once(one_device())


@pytest.mark.parametrize("member", range(len(LENGTHS)))
def test_losses_and_weights_are_those_of_single_runs(together, member):
    """Under AdamW, clipping and dropout, with a schedule as long as its own data."""
    losses, states, _ = together
    program, state, frozen = begun(LENGTHS[member], one_device())
    own = []
    for step in range(LENGTHS[member]):
        state, metrics = program.step(state, frozen, jax.tree.map(jnp.asarray, batch_of(member, step)))
        own.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[: LENGTHS[member], member], own, rtol=1e-5)
    found = submodels.take(states[-1], member)
    assert int(found.step) == int(state.step) == LENGTHS[member]
    for name in ("params", "opt_state", "horizon", "key"):
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
        jax.tree.map(close, getattr(found, name), getattr(state, name))


def test_weights_under_plain_descent():
    """Where nothing blows up rounding, the weights agree to 1e-5."""
    program, state, frozen = begun(LENGTHS, one_device())
    descent = Optimizer(optax.identity(), lambda step, horizon: 0.1 * (1 - step / horizon.steps))
    step = make_step(program.decoder, program.method, make_objective(program.config.objective), descent)
    state = dataclasses.replace(state, opt_state=optax.EmptyState())
    each, jitted, mapped = [], jax.jit(step), jax.jit(submodels.together(step))
    for k, length in enumerate(LENGTHS):
        one = submodels.take(state, k)
        for i in range(length):
            one, _ = jitted(one, frozen, jax.tree.map(jnp.asarray, batch_of(k, i)))
        each.append(one.params)
    for i in range(max(LENGTHS)):
        state, _ = mapped(state, frozen, jax.tree.map(jnp.asarray, stacked(i)))
    for k, params in enumerate(each):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), submodels.take(state.params, k), params)


def test_a_finished_sub_model_is_left_bit_for_bit(together):
    _, states, _ = together
    for member, length in enumerate(LENGTHS):
        at_its_end, at_the_end = (submodels.take(states[i], member) for i in (length - 1, -1))
        jax.tree.map(np.testing.assert_array_equal, at_its_end, at_the_end)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), *(submodels.take(s, 0).params for s in states[-2:]))
    assert all(jax.tree.leaves(moved)), "the others go on"


def test_all_begin_alike_and_part():
    program, state, frozen = begun(LENGTHS, one_device())
    same = jax.tree.map(lambda x: bool((x == x[:1]).all()), (state.params, state.opt_state, state.key))
    assert all(jax.tree.leaves(same))
    assert state.horizon.steps.tolist() == list(LENGTHS) and state.horizon.warmup.tolist() == [4, 2, 4, 1]
    for step in range(2):  # the first has a learning rate of 0
        state, _ = program.step(state, frozen, jax.tree.map(jnp.asarray, stacked(step)))
    b = state.params["stacks"]["0"]["0"]["attn"]["q_proj"]["lora_b"]
    assert len({np.asarray(row).tobytes() for row in b}) == len(LENGTHS)


KINDS = {
    "loramoe": LoRAMoEConfig(experts=4, rank=2, dropout=0.1, beta=0.5),
    "spiel": SpIELConfig(lora_rank=2, reselect_every=3, phase=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_adapters_at_once(kind):
    """Balanced experts, and deltas whose support moves between steps: as single runs make them."""
    settings, steps = config(), 7
    settings.adapter = AdapterConfig(kind, **{kind: KINDS[kind]})

    def typed(member: int, step: int):
        batch = batch_of(member, step)
        types = np.random.default_rng(step).integers(0, 2, (ROWS, SLOTS), np.int32)
        return dataclasses.replace(batch, extras=batch.extras | {"type": types})

    def run(lengths, batch):
        program = build(settings, llama(), one_device(), lengths, typed(0, 0))
        state, frozen = program.initial(program.decoder.init(jax.random.key(1)))
        maintain, losses = jit_maintenance(program), []
        with jax.set_mesh(program.mesh):
            for step in range(1, steps + 1):
                state, metrics = program.step_at(step)(state, frozen, jax.tree.map(jnp.asarray, batch(step)))
                losses.append(np.asarray(metrics["loss"]))
                if maintain and maintain.due(step):
                    state, _ = maintain.apply(state, frozen.method)
        return np.array(losses), state

    losses, state = run([steps] * 2, lambda step: submodels.stack([typed(k, step) for k in range(2)]))
    for member in range(2):
        own, alone = run(steps, lambda step: typed(member, step))  # noqa: B023
        np.testing.assert_allclose(losses[:, member], own, rtol=1e-5)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
        jax.tree.map(close, *((s.params, s.aux) for s in (submodels.take(state, member), alone)))


MESHES = {"submodel=4,fsdp=2": MeshConfig(1, 2, 1, 4), "submodel=2,fsdp=2,tensor=2": MeshConfig(1, 2, 2, 2)}


@pytest.mark.parametrize("name", MESHES)
def test_on_a_mesh(together, name):
    losses, states, program = all_at_once(make_mesh(MESHES[name]))
    want, known, _ = together
    for member, length in enumerate(LENGTHS):
        np.testing.assert_allclose(losses[:length, member], want[:length, member], rtol=1e-5)
    assert all(leaf.sharding.spec[0] == "submodel" for leaf in jax.tree.leaves(program.state.params))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, states[-1].params, known[-1].params)


COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(")


def partners(line: str, devices: int) -> list[list[int]]:
    """The groups of devices between which a collective sends."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line):
        return [[int(d) for d in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    if short := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line):
        return iota(short[3], devices).reshape(int(short[1]), int(short[2])).tolist()
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", line)
    axes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    grid = iota(named[2], devices).reshape([int(size) for size in axes.values()])
    along = [list(axes).index(name) for name in re.findall(r"'(\w+)'", named[3])]
    width = int(np.prod([grid.shape[axis] for axis in along]))
    return np.moveaxis(grid, along, range(-len(along), 0)).reshape(-1, width).tolist()


def iota(text: str | None, devices: int) -> np.ndarray:
    """Device numbers as XLA writes them: [2,4]T(1,0) is the transpose of two rows of four."""
    order = np.arange(devices)
    if match := re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text or ""):
        order = order.reshape([int(n) for n in match[1].split(",")])
        order = order.transpose([int(n) for n in match[2].split(",")]) if match[2] else order
    return order


def test_no_traffic_between_sub_models():
    """In the compiled step only the gathering of metrics goes beyond the devices of one sub-model."""
    mesh = make_mesh(MESHES["submodel=2,fsdp=2,tensor=2"])
    text = build(config(), llama(), mesh, LENGTHS, batch_of(0, 0)).compile().as_text()
    home = {place: k for k, block in enumerate(np.arange(8).reshape(2, 4)) for place in block.tolist()}
    assert mesh.devices.shape == (2, 1, 2, 2)
    inside, crossing = [], []
    for line in text.splitlines():
        if match := COLLECTIVE.search(line):
            crosses = any(len({home[d] for d in group}) > 1 for group in partners(line, 8))
            (crossing if crosses else inside).append(match[1])
    assert len(inside) > 10
    sizes = [
        int(np.prod([int(n) for n in dims.split(",") if n]))
        for out in crossing
        for dims in re.findall(r"\[([\d,]*)\]", out)
    ]
    assert max(sizes, default=0) <= len(LENGTHS), crossing


@pytest.mark.parametrize(
    ("kind", "lengths", "mesh", "message"),
    [
        (
            "lora",
            LENGTHS,
            MeshConfig(1, 1, 1, 8),
            "config.mesh.submodel is 8, which does not divide config.submodels = 4",
        ),
        ("lora", 5, MeshConfig(1, 4, 1, 2), "config.mesh.submodel is 2, which does not divide config.submodels = 0"),
        ("none", LENGTHS, MeshConfig(1, 8, 1), "config.submodels trains adapters over a base that all share"),
    ],
)
def test_refusals(kind, lengths, mesh, message):
    settings = dataclasses.replace(config(), adapter=AdapterConfig(kind), batch_size=8)
    with pytest.raises(UserError, match=message):
        build(settings, llama(), make_mesh(mesh), lengths, abstract_batch(8, LENGTH, SLOTS))


def test_the_horizon_is_data():
    """Runs of all lengths share a schedule's program."""
    settings = config().optimizer
    schedule = jax.jit(make_schedule(settings))
    rates = [float(schedule(jnp.int32(1), make_horizon(settings, n))) for n in (10, 20, 40)]
    assert schedule._cache_size() == 1
    np.testing.assert_allclose(rates, [1e-2 * share for share in (1 / 2, 1 / 4, 1 / 8)], rtol=1e-6)
