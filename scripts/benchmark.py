"""Speed and memory of the training step on random weights and data, as ratios that can be compared within one run.

    python scripts/benchmark.py --shapes=tiny --methods=full,lora

prints one line for each shape and method: tokens per second (slots), seconds a step, compile time, peak memory.
"""

import dataclasses
import time

import jax
import numpy as np
from absl import flags

from jaxsft import cli
from jaxsft.config import TrainConfig
from jaxsft.data.batch import Batch
from jaxsft.errors import UserError
from jaxsft.models.architecture import Architecture
from jaxsft.sharding import data_shards, make_mesh
from jaxsft.training.program import Program, build
from jaxsft.training.throughput import flops_per_token, peak_flops
from jaxsft.validation import did_you_mean


@dataclasses.dataclass(frozen=True)
class Shape:
    """A named Llama: sizes, and rows of tokens a step."""

    embed: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    rows: int
    length: int

    def architecture(self) -> Architecture:
        """The shape as a model."""
        return Architecture.from_hf(
            {
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.embed,
                "intermediate_size": self.mlp, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab, "rms_norm_eps": 1e-5,
                "rope_theta": 500000.0, "max_position_embeddings": self.length, "hidden_act": "silu",
                "tie_word_embeddings": False,
            }
        )  # fmt: skip


SHAPES = {
    "tiny": Shape(64, 172, 5, 8, 4, 512, 16, 256),
    "deep4": Shape(128, 352, 4, 8, 4, 2048, 8, 256),
    "deep32": Shape(128, 352, 32, 8, 4, 2048, 8, 256),
    "small": Shape(288, 768, 6, 6, 6, 32000, 8, 256),
    "1b": Shape(2048, 8192, 16, 32, 8, 128256, 8, 4096),
    "8b": Shape(4096, 14336, 32, 32, 8, 128256, 8, 4096),
}
METHODS = {"full": "none", "lora": "lora"}

SHAPE_NAMES = flags.DEFINE_list("shapes", ["tiny"], f"Of {', '.join(SHAPES)}.")
METHOD_NAMES = flags.DEFINE_list("methods", list(METHODS), f"Of {', '.join(METHODS)}.")
STEPS = flags.DEFINE_integer("steps", 10, "Timed steps, after two that warm up.")
REMAT = flags.DEFINE_string("remat", "block", "See ModelConfig.remat.")
FSDP = flags.DEFINE_integer("fsdp", -1, "See MeshConfig.fsdp.")
TENSOR = flags.DEFINE_integer("tensor", 1, "See MeshConfig.tensor.")


def main() -> str:
    print(f"{'shape':8} {'method':6} {'tokens/s':>10} {'s/step':>9} {'compile s':>9} {'peak GiB':>9} {'MFU':>6}")
    for shape in _known(SHAPE_NAMES.value, SHAPES, "--shapes"):
        for method in _known(METHOD_NAMES.value, METHODS, "--methods"):
            print(measure(shape, method), flush=True)
    device = jax.devices()[0]
    return f"{STEPS.value} timed steps each on {jax.device_count()} x {device.device_kind}"


def measure(name: str, method: str) -> str:
    """One line of the table."""
    shape, config = SHAPES[name], TrainConfig()
    config.adapter.kind, config.model.remat = METHODS[method], REMAT.value
    config.mesh.fsdp, config.mesh.tensor = FSDP.value, TENSOR.value
    mesh = make_mesh(config.mesh)
    config.batch_size = max(shape.rows, data_shards(mesh))
    batch = random_batch(shape, config.batch_size)
    program = build(config, shape.architecture(), mesh, 100, batch)
    began = time.perf_counter()
    compiled = program.compile()
    compiling = time.perf_counter() - began
    seconds = seconds_per_step(program, compiled, batch)
    tokens = config.batch_size * shape.length
    memory = compiled.memory_analysis()
    # As planned by the compiler: what the device reports is the peak of all lines so far.
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    peak = (peak - memory.alias_size_in_bytes) / 2**30
    flops, best = (
        flops_per_token(shape.architecture(), shape.length, float(method == "full")),
        peak_flops(jax.devices()[0]),
    )
    mfu = f"{tokens * flops / seconds / best / mesh.size:6.1%}" if best else "     -"
    return f"{name:8} {method:6} {tokens / seconds:10.0f} {seconds:9.4f} {compiling:9.1f} {peak:9.3f} {mfu}"


def seconds_per_step(program: Program, compiled: object, batch: Batch) -> float:
    """The median over timed steps."""
    state, frozen = program.initial(program.random_base())
    batch = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), batch, program.batch)
    times = []
    for _ in range(STEPS.value + 2):
        began = time.perf_counter()
        state, metrics = compiled(state, frozen, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))


def random_batch(shape: Shape, rows: int) -> Batch:
    """Rows of one full-length example each, the second half supervised."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, shape.vocab, (rows, shape.length + 1), dtype=np.int32)
    ones = np.ones((rows, shape.length), np.int32)
    positions = np.broadcast_to(np.arange(shape.length, dtype=np.int32), ones.shape)
    weights = (positions >= shape.length // 2).astype(np.float32)
    extras = {"example_index": np.arange(rows, dtype=np.int32)[:, None]}
    return Batch(tokens[:, :-1], positions, ones, ones, tokens[:, 1:], weights, extras)


def _known(names: list[str], known: dict, flag: str) -> list[str]:
    for name in names:
        if name not in known:
            raise UserError(f"{flag} has no {name!r}; it has {', '.join(known)}{did_you_mean(name, known) or '.'}")
    return names


if __name__ == "__main__":
    cli.main(main)
