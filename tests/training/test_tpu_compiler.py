"""The real TPU compiler accepts the step for real topologies, on a machine without a TPU (in a subprocess)."""

import json
import subprocess
import sys

import pytest

from tests.training.conftest import environment

pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")

COMPILE = """
import json, math, re, sys
import jax
from jax.experimental import topologies
from jaxsft.config import MeshConfig, TrainConfig
from jaxsft.sharding import make_mesh
from jaxsft.training.program import abstract_batch, build
from tests.tiny import llama

topology, mesh_axes = sys.argv[1], json.loads(sys.argv[2])
devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
mesh = make_mesh(MeshConfig(**mesh_axes), devices)
arch = llama(hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
             head_dim=128, vocab_size=32000)
result = {}
for kind in ("none", "lora"):
    config = TrainConfig(batch_size=2 * len(devices), accumulate=2 if kind == "none" else 1)
    config.adapter.kind = kind
    config.model.remat = "block"
    program = build(config, arch, mesh, 100, abstract_batch(config.batch_size, 256, 8))
    compiled = program.compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    size = lambda tree, shape: sum(math.prod(shape(s)) * s.dtype.itemsize for s in jax.tree.leaves(tree))
    whole, shard = lambda s: s.shape, lambda s: s.sharding.shard_shape(s.shape)
    result[kind] = {
        "alias": memory.alias_size_in_bytes, "arguments": memory.argument_size_in_bytes,
        "temp": memory.temp_size_in_bytes, "splash": text.count("splash"),
        "state": size(program.state, whole), "state_shard": size(program.state, shard),
        "frozen": size(program.frozen, whole), "frozen_shard": size(program.frozen, shard),
        "collectives": {op: len(re.findall(rf" {op}[\\w-]*\\(", text)) for op in
                        ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")},
    }
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def compiled():
    """Compiles each topology once."""
    known = {}

    def of(topology, **axes):
        if topology not in known:
            done = subprocess.run(
                [sys.executable, "-c", COMPILE, topology, json.dumps(axes)],
                env=environment(TPU_SKIP_MDS_QUERY="1"), capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            known[topology] = json.loads(done.stdout.splitlines()[-1])
        return known[topology]

    return of


@pytest.mark.parametrize(
    ("topology", "axes"),
    [("v5e:2x2", {"fsdp": 2, "tensor": 2}), ("v5p:2x2x2", {"fsdp": 4, "tensor": 2})],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.parametrize("kind", ["none", "lora"])
def test_the_step_compiles_for_a_tpu(compiled, topology, axes, kind):
    r = compiled(topology, **axes)[kind]
    ways = axes["fsdp"] * axes["tensor"]
    big = "state" if kind == "none" else "frozen"
    assert r[f"{big}_shard"] < 1.05 * r[big] / ways, "parameters are not split over the mesh"
    assert r["alias"] >= 0.99 * r["state_shard"], "the state is not donated"
    assert r["arguments"] < 1.2 * (r["state_shard"] + r["frozen_shard"]) + 2**20
    assert r["temp"] < 2**30, "temporaries of a small model"
    assert r["collectives"]["all-gather"] > 0, "fsdp gathers weights"
    assert r["collectives"]["all-reduce"] + r["collectives"]["reduce-scatter"] > 0
    assert r["splash"] > 0, "attention is not the TPU kernel"


def test_frozen_weights_send_no_gradients(compiled):
    """LoRA moves the base's weights and the adapters' gradients, not the base's gradients."""
    r = compiled("v5e:2x2", fsdp=2, tensor=2)
    assert r["lora"]["state"] < 0.2 * r["none"]["state"]
    assert r["lora"]["temp"] < r["none"]["temp"]
