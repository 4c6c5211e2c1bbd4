"""The checks that every method must pass. A method registers a tiny case here and writes none of them again.

Invariance is claimed at dropout 0. Real kills of real runs: `tests/training/test_resume.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxsft.config import (
    LogConfig,
    LoRAConfig,
    LoRAMoEConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RegularizersConfig,
    RowsConfig,
    SpIELConfig,
    SPPConfig,
    TrainConfig,
)
from jaxsft.models import layout
from jaxsft.models.decoder import Decoder
from jaxsft.objectives.registry import make_objective
from jaxsft.sharding import make_mesh
from jaxsft.training.loop import jit_maintenance
from jaxsft.training.optimizer import Optimizer
from jaxsft.training.program import build
from jaxsft.training.step import BoundModel, make_step
from tests.tiny import llama, make_batch, packed_rows, random_examples

ROWS, LENGTH, SLOTS = 8, 64, 12


@dataclasses.dataclass(frozen=True)
class Case:
    """A method, as the config that selects it.

    Attributes:
      group: examples of a group; batches of several hold `member`, and packing splits no group.
      extras: what its batches hold besides: name -> a function from an example's tokens to its number, so that it is
        the same wherever the example stands.
      chunks: whether the examples of a group see those before them.
      post_layers: of the model, the first ones.
      tied: whether its head is its embedding.
    """

    name: str
    config: TrainConfig
    group: int = 1
    extras: Mapping[str, Callable[[np.ndarray], float]] = dataclasses.field(default_factory=dict)
    chunks: bool = False
    post_layers: int = 0
    tied: bool = False


def _config(**changes: object) -> TrainConfig:
    config = TrainConfig(**changes)
    config.batch_size = ROWS
    config.model.dtype = config.model.param_dtype = "float32"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 2
    config.objective.chunk_size = 32
    return config


def _lora(**changes: object) -> TrainConfig:
    config = _config()
    config.adapter.kind = "lora"
    config.adapter.lora = LoRAConfig(rank=4, alpha=8.0, **changes)
    return config


def _quantized(config: TrainConfig, kind: str) -> TrainConfig:
    config.model.quantization = kind
    return config


def _spp(**changes: object) -> TrainConfig:
    config = _config()
    config.adapter.kind = "spp"
    config.adapter.spp = SPPConfig(rank=4, scale=8.0, **changes)
    return config


def _loramoe(config: TrainConfig | None = None, **changes: object) -> TrainConfig:
    config = config or _config()
    config.adapter.kind = "loramoe"
    config.adapter.loramoe = LoRAMoEConfig(**{"experts": 4, "rank": 2, "dropout": 0.0, "beta": 0.5} | changes)
    return config


def _spiel(variant: str = "ag", **changes: object) -> TrainConfig:
    config = _config()
    config.adapter.kind = "spiel"
    config.adapter.spiel = SpIELConfig(variant=variant, lora_rank=4, **changes)
    config.optimizer.name = {"ag": "adamw", "ma": "sm3"}[variant]
    return config


def _rows(*targets: str) -> TrainConfig:
    config = _config()
    config.adapter.kind, config.adapter.rows = "rows", RowsConfig((3, 5, 7, 11, 13, 62), targets)
    return config


def unlikely(tokens: np.ndarray) -> float:
    """A reference's log-probability that is some nats from the model's."""
    return -4.0 * len(tokens) + (int(tokens.sum()) % 7 - 3)


MINOR = ObjectiveConfig("minor_sft", beta=0.3)
MINOR_DPO = ObjectiveConfig("minor_dpo", beta=0.1, ratio="mean")
MRPO = ObjectiveConfig("mrpo", beta=0.1, label_smoothing=0.1, sft_weight=0.3)
REFERENCES = {"reference_0": unlikely, "reference_1": lambda tokens: -3.9 * len(tokens)}
SFTMIX = ObjectiveConfig("sftmix", mu=0.5)
SFTMIX_PRE = dataclasses.replace(SFTMIX, mix_hidden="pre_norm", lambda_scope="token", mix_alpha=2.0)


def _regularized(config: TrainConfig, **changes: object) -> TrainConfig:
    config.objective.regularizers = RegularizersConfig(**changes)
    return config


DOMAINS = {"domain/odd": lambda tokens: len(tokens) % 2, "domain/even": lambda tokens: 1 - len(tokens) % 2}
TYPED = {"type": lambda tokens: len(tokens) % 3 - 1}  # one in three has none
MOST = ("embed", "layers.1.*_proj")
FROZEN = ("embed", "layers.0", "layers.*.mlp.gate_proj")
CASES = [
    Case("full", _config()),
    Case("full-example-mean", _config(objective=ObjectiveConfig(reduction="example_mean"))),
    Case("full-frozen-layers", _config(optimizer=OptimizerConfig(freeze=FROZEN))),
    Case("full-regularized", _regularized(_config(), neftune_alpha=5.0, kl_to_base=0.7, l2_to_start=0.1, l1=0.01)),
    Case("lora", _lora()),
    Case("qlora", _quantized(_lora(), "nf4")),
    Case("lora-int8", _quantized(_lora(targets=("layers.1.attn.*_proj", "layers.*.mlp.down_proj")), "int8")),
    Case("loramoe", _loramoe(), extras=TYPED),
    Case("loramoe-sftmix", _loramoe(_config(objective=SFTMIX), delta=0.6, form="var_over_mean"), 2, TYPED),
    Case("loramoe-pairs-int8", _quantized(_loramoe(_config(objective=MINOR_DPO), targets=MOST), "int8"), 2, TYPED),
    Case("sftmix", _config(objective=SFTMIX), group=2),
    Case("sftmix-lora-pre-norm", dataclasses.replace(_lora(), objective=SFTMIX_PRE), group=2),
    Case("lora-regularized", _regularized(_lora(), neftune_alpha=5.0, kl_to_base=0.7, l2_to_start=0.1)),
    Case("lora-l1", _regularized(_lora(), l1=0.1, l1_on="weights", l1_proximal=True)),
    Case("lora-some-layers", _lora(targets=("layers.1.attn.*_proj", "layers.*.mlp.down_proj", "head"))),
    Case("spp", _spp()),
    Case("spp-some-layers", _spp(targets=("layers.1.attn.*_proj", "layers.*.mlp.down_proj", "head"))),
    Case("spiel", _spiel()),
    Case("spiel-selections", _spiel(reselect_every=4, phase=2, targets=("layers.1.attn.*_proj", "layers.*.mlp"))),
    Case("spiel-ma", _spiel("ma", reselect_every=4, phase=2)),
    Case("rows", _rows("embed", "head")),
    Case("rows-tied", _rows("embed"), tied=True),
    Case("lora-embed-tied", _lora(targets=("embed", "layers.*.attn.*_proj")), tied=True),
    Case("minor-sft", _config(objective=MINOR), extras={"reference_0": unlikely}),
    Case("minor-sft-lora-online", dataclasses.replace(_lora(), objective=MINOR)),
    Case("mrpo", _config(objective=MRPO), group=2, extras=REFERENCES),
    Case("minor-dpo-lora-online", dataclasses.replace(_lora(), objective=MINOR_DPO), group=2),
    Case("max-match", _config(objective=ObjectiveConfig("max_match", consistency=0.5)), group=3),
    Case("mix-ln", _config(log=LogConfig(layer_grad_norms=True)), post_layers=1),
    Case("mix-ln-lora", _lora(targets=("layers.[01].attn.*_proj",)), post_layers=1),
    Case("mixture-of-instructions", _config(), group=2, extras=DOMAINS, chunks=True),
]
MESHES = {
    "fsdp=8": MeshConfig(1, 8, 1),
    "fsdp=4,tensor=2": MeshConfig(1, 4, 2),
    "replica=2,fsdp=2,tensor=2": MeshConfig(2, 2, 2),
}


EVERY_AXIS = "replica=2,fsdp=2,tensor=2"
ON_EVERY_MESH = ("full", "lora", "qlora")  # the others on the mesh that has all axes


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def programs(case) -> "Programs":
    return Programs(case)


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def batch_of(case: Case, seed: int = 0, rows: int = ROWS):
    """Packed rows with very unequal supervised weight: the second half of the rows holds almost none."""
    examples = random_examples(4 * rows, min(20, LENGTH // (case.group + 1)), seed=seed)
    batch = lay_out(case, packed_rows(examples, rows, LENGTH, case.group), LENGTH, SLOTS, examples)
    batch.weights[rows // 2 :] *= np.random.default_rng(seed).random((rows // 2, LENGTH)) < 0.1
    return batch


def lay_out(case: Case, table: list[list], length: int, slots: int, examples: list):
    """The rows as the case's batch; `example_index` is the place in `examples`, however they were packed."""
    batch = make_batch(table, length, slots, examples)
    filled = batch.extras["example_index"] >= 0
    for name, number in case.extras.items():
        batch.extras[name] = np.zeros(filled.shape, np.float32)
        for row, slot in np.argwhere(filled):
            batch.extras[name][row, slot] = number(batch.tokens[row, batch.example_ids[row] == slot + 1])
    if case.group > 1:
        batch.extras["member"] = np.where(filled, np.arange(slots) % case.group, -1).astype(np.int32)
    return chunked(batch, case.group) if case.chunks else batch


def chunked(batch, size: int):
    """The batch with so many examples an attention unit."""
    units = np.where(batch.example_ids > 0, (batch.example_ids - 1) // size + 1, 0)
    begins = [[np.searchsorted(row, unit) for unit in row] for row in np.where(units > 0, units, size + units.max())]
    positions = np.where(units > 0, np.arange(units.shape[1]) - np.array(begins), 0)
    return dataclasses.replace(batch, segment_ids=units.astype(np.int32), positions=positions.astype(np.int32))


@functools.cache
def base_of(post_layers: int, tied: bool = False):
    """The model's parameters on the host."""
    arch = llama(tie_word_embeddings=tied).with_post_layers(post_layers, "the case")
    return arch, jax.tree.map(np.asarray, Decoder(arch).init(jax.random.key(1)))


class Programs:
    """A case's programs, each made and compiled once for all checks."""

    def __init__(self, case: Case):
        self.case, self._starts = case, {}
        self.descents = functools.cache(self._descent)

    def start(self, mesh: str = ""):
        """The program for a mesh or for one device, and a state of its own whose adapters are not at zero, and that has
        left what it may be drawn back to."""
        if mesh not in self._starts:
            self._starts[mesh] = self._started(make_mesh(MESHES[mesh]) if mesh else one_device())
        program, state, shardings, frozen = self._starts[mesh]
        return program, jax.tree.map(jax.device_put, state, shardings), frozen

    def _started(self, mesh):
        arch, base = base_of(self.case.post_layers, self.case.tied)
        program = build(self.case.config, arch, mesh, 10, batch_of(self.case))
        state, frozen = program.initial(program.stored(jax.tree.map(jnp.asarray, base)))
        shardings, state = jax.tree.map(lambda x: x.sharding, state), jax.tree.map(np.asarray, state)
        if self.case.config.adapter.kind != "none" or frozen.start is not None:
            # the same wherever they live: drawn on the host
            rng = np.random.default_rng(3)
            noise = lambda p: p + 0.05 * rng.normal(size=p.shape).astype(np.float32)
            state = dataclasses.replace(state, params=jax.tree.map(noise, state.params))
        return program, state, shardings, frozen

    def _descent(self, accumulate: int):
        """A step of plain gradient descent on one device, and its optimizer."""
        program, *_ = self.start()
        descent = Optimizer(optax.identity(), lambda step, horizon: jnp.float32(1.0))
        objective = make_objective(self.case.config.objective)
        return jax.jit(make_step(program.decoder, program.method, objective, descent, accumulate)), descent


def gradient(programs: Programs, batch, accumulate: int = 1):
    """The gradient that reaches the optimizer, as minus one step of plain gradient descent."""
    step, descent = programs.descents(accumulate)
    _, state, frozen = programs.start()
    state = dataclasses.replace(state, opt_state=descent.transformation.init(state.params))
    after, metrics = step(state, frozen, jax.tree.map(jnp.asarray, batch))
    return jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b), state.params, after.params), metrics


def relative(a, b) -> float:
    """The norm of the difference over the norm."""
    difference = optax.tree.norm(jax.tree.map(lambda x, y: x - y, a, b))
    return float(difference / optax.tree.norm(b))


def test_accumulation_is_the_gradient_of_one_batch(case, programs):
    whole, metrics = gradient(programs, batch_of(case))
    parts, metrics_of_parts = gradient(programs, batch_of(case), accumulate=4)
    assert optax.tree.norm(whole) > 1e-3
    assert relative(parts, whole) < 1e-6
    for name, value in metrics.items():
        np.testing.assert_allclose(metrics_of_parts[name], value, rtol=2e-6, atol=5e-8, err_msg=name)


def test_packing_does_not_change_the_gradient(case, programs):
    examples = random_examples(16, 20, seed=5)
    groups = [examples[i : i + case.group] for i in range(0, len(examples), case.group)]
    rows = packed_rows(examples, ROWS, LENGTH, case.group)
    packed, metrics = gradient(programs, lay_out(case, rows, LENGTH, SLOTS, examples))
    single, metrics_of_single = gradient(programs, lay_out(case, groups, 24 * case.group, 2 + case.group, examples))
    assert relative(packed, single) < 2e-6
    np.testing.assert_allclose(metrics["loss"], metrics_of_single["loss"], rtol=2e-6)


def test_an_attention_unit_sees_no_other(case, programs):
    batch = batch_of(case)
    program, state, frozen = programs.start()

    @jax.jit
    def logits(batch):
        model = BoundModel(
            program.decoder, program.method, frozen.parts(state.params, state.aux["method"]), {}, None, False
        )
        output = model(batch)
        return output.head(output.head_params, output.hidden)

    before = logits(batch)
    chosen = batch.segment_ids == 2
    edited = dataclasses.replace(batch, tokens=np.where(chosen, 63 - batch.tokens, batch.tokens))
    after = logits(edited)
    others = (batch.segment_ids > 0) & ~chosen
    np.testing.assert_array_equal(np.asarray(before)[others], np.asarray(after)[others])
    assert np.abs(np.asarray(before)[chosen] - np.asarray(after)[chosen]).max() > 1e-3


def ten_steps(programs: Programs, mesh: str = ""):
    """The losses, and the state after them."""
    program, state, frozen = programs.start(mesh)
    losses = []
    maintenance = jit_maintenance(program)
    with jax.set_mesh(program.mesh):
        for i in range(10):
            batch = batch_of(programs.case, i)
            batch = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), batch, program.batch)
            state, metrics = program.step_at(i + 1)(state, frozen, batch)
            if maintenance and maintenance.due(i + 1):
                state, _ = maintenance.apply(state, frozen.method)
            losses.append(float(metrics["loss"]))
    return losses, state


def test_sharding_does_not_change_the_losses(case, programs):
    alone, _ = ten_steps(programs)
    for mesh in MESHES if case.name in ON_EVERY_MESH else [EVERY_AXIS]:
        losses, state = ten_steps(programs, mesh)
        program, _, frozen = programs.start(mesh)
        np.testing.assert_allclose(losses, alone, rtol=1e-5, err_msg=mesh)
        assert losses[-1] != losses[0]
        for kind in {program.method.stage(step) for step in range(1, 11)}:
            assert program.steps(kind)._cache_size() == 1, "a step was compiled more than once"
        for path, leaf in jax.tree_util.tree_leaves_with_path((state, frozen)):
            if leaf.size >= 32 * 32:
                assert leaf.sharding.spec != PartitionSpec(), f"{path} {leaf.shape} is replicated on {mesh}"
                assert leaf.addressable_shards[0].data.size < leaf.size, f"{path} {leaf.shape} is on every device"


def test_state_is_donated(programs):
    program, state, _ = programs.start(EVERY_AXIS)
    local = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert program.compile().memory_analysis().alias_size_in_bytes >= 0.99 * local


def test_only_the_trained_part_moves(case, programs):
    """Frozen rows and frozen arrays are bit for bit what they were."""
    program, state, frozen = programs.start()
    before = jax.tree.map(np.asarray, state.params)
    with jax.set_mesh(program.mesh):
        for i in range(2):
            batch = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), batch_of(case, i), program.batch)
            state, _ = program.step(state, frozen, batch)
    mask = program.method.update_mask(state.params) or jax.tree.map(lambda _: True, state.params)
    moved = jax.tree.map(lambda a, b: np.asarray(a != b), state.params, before)
    for (path, changed), allowed in zip(layout.leaves(moved), jax.tree.leaves(mask)):
        assert not np.any(changed & ~np.asarray(allowed)), path
        assert np.any(changed), path
