"""What a run would need on devices that are not here: its step, compiled by the real compiler for their topology."""

import dataclasses
import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxsft.config import TrainConfig
from jaxsft.data import types
from jaxsft.data.batch import DOMAIN, TYPE, Batch
from jaxsft.data.grouping import examples_of_group
from jaxsft.errors import UserError
from jaxsft.models.checkpoint import resolve
from jaxsft.objectives.reference import PREFIX
from jaxsft.objectives.registry import make_objective
from jaxsft.sharding import make_mesh
from jaxsft.training.program import Program, abstract_batch, architecture, build, check_grouping
from jaxsft.training.references import reference_models
from jaxsft.training.throughput import flops_per_token

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


def plan(config: TrainConfig, topology: str, slices: int = 1) -> dict[str, Any]:
    """Compiles the step of a run for an absent TPU; of a method with several kinds of steps the one that needs most.

    Args:
      config: the run's; of its model only `config.json` is read, of its data nothing.
      topology: such as "v5e:2x2" or "v5p:4x4x4".
      slices: how many of them, joined by the data-centre network.

    Returns:
      Bytes a device: `arguments` (state, frozen parameters, batch), `temporaries`, `aliased` (donated), `peak` of all;
      `state`, `frozen`: bytes of the whole; `state_per_device`, `frozen_per_device`; `flops` of a step by the formula
      of `jaxsft.training.throughput`; `compiled_flops` of a device, as the compiler counts them; `collectives`: kind ->
      how often it stands in the program; `kernels`: calls of Pallas kernels (attention's).

    Raises:
      UserError: for a topology that the compiler does not know, a mesh or model that do not fit it, or no libtpu.
    """
    mesh, data = make_mesh(config.mesh, describe(topology, slices)), config.data
    program = lay_out(config, mesh)
    arch, stages = program.decoder.arch, {program.method.stage(step) for step in range(1, (config.steps or 1000) + 1)}
    compiled = max((program.compile(stage) for stage in sorted(stages)), key=lambda step: _peak(step.memory_analysis()))
    memory, text = compiled.memory_analysis(), compiled.as_text()
    size = lambda tree, shape: sum(math.prod(shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    whole, shard = lambda leaf: leaf.shape, lambda leaf: leaf.sharding.shard_shape(leaf.shape)
    tokens = config.batch_size * data.max_length * max(config.submodels, 1)
    trained = float(config.adapter.kind == "none")
    return {
        "devices": mesh.size,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "peak": _peak(memory),
        "state": size(program.state, whole),
        "state_per_device": size(program.state, shard),
        "frozen": size(program.frozen, whole),
        "frozen_per_device": size(program.frozen, shard),
        "flops": tokens * flops_per_token(arch, data.max_length, trained),
        "compiled_flops": compiled.cost_analysis().get("flops", math.nan),
        "collectives": {kind: len(re.findall(rf" {kind}[\w-]*\(", text)) for kind in COLLECTIVES},
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
    }


def _peak(memory: Any) -> int:
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return held - memory.alias_size_in_bytes


def lay_out(config: TrainConfig, mesh: Mesh) -> Program:
    """The program of a run whose data and weights are not here.

    Raises:
      UserError: for a mesh or model that do not fit the config, and a config that cannot be trained.
    """
    objective = make_objective(config.objective)
    check_grouping(config, objective)
    batch, steps = _batch(config, len(reference_models(config, objective))), config.steps or 1000
    lengths = [steps] * config.submodels if config.submodels else steps
    return build(config, architecture(config.model, resolve(config.model.path)), mesh, lengths, batch)


def _batch(config: TrainConfig, references: int) -> Batch:
    """The shapes of a batch with all that objectives read of it, which the config alone decides."""
    data = config.data
    slots = data.max_examples_per_row if data.packing else examples_of_group(data)
    batch = abstract_batch(config.batch_size, data.max_length, slots)
    slot = batch.extras["example_index"]
    integers = [f"{DOMAIN}{name}" for name in data.mixture.domains]
    integers += ["member"] if data.grouping != "example" else []
    integers += [TYPE] if types.given(data.types) else []
    floats = [f"{PREFIX}{k}" for k in range(references)]
    more = dict.fromkeys(integers, slot) | dict.fromkeys(floats, jax.ShapeDtypeStruct(slot.shape, jnp.float32))
    return dataclasses.replace(batch, extras=batch.extras | more)


def describe(topology: str, slices: int = 1) -> list[jax.Device]:
    """The devices of a topology, good for compiling only."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, num_slices=slices).devices)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"--topology={topology} cannot be described: {str(error).splitlines()[0]}; "
            "write it like v5e:2x2 or v5p:4x4x4, and install the extra `tpu`."
        ) from error
