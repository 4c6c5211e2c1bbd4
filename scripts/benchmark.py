"""Speed and memory of the training step on random weights and data, as ratios that can be compared within one run.

    python scripts/benchmark.py --shapes=tiny --methods=full,lora --objectives=sft,minor_sft

prints one line for each shape, method and objective: tokens per second (slots), seconds a step, compile time, peak
memory; of every objective but the first, the time relative to the first under the same method, and of every method but
the first, relative to the first method. All take turns, step by step, so that what else the machine does hits all
alike; the ratio is the median over pairs of steps. `--submodels=4` adds, for each adapter, the step of four sub-models
at once, and its throughput relative to four runs of the method one after another.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from jaxsft import cli
from jaxsft.config import ObjectiveConfig, TrainConfig
from jaxsft.data.batch import Batch
from jaxsft.errors import UserError
from jaxsft.models.architecture import Architecture
from jaxsft.sharding import data_shards, make_mesh
from jaxsft.training import submodels
from jaxsft.training.program import build
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
FFN = ("layers.*.mlp.*_proj",)
SPIEL = {"adapter.kind": "spiel", "adapter.spiel.lora_rank": 16}
# What a method sets in the config, by path, and which kind of its steps (`Method.stage`) is measured.
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapter.kind": "lora"},
    "qlora": {"adapter.kind": "lora", "model.quantization": "nf4"},
    "lora-int8": {"adapter.kind": "lora", "model.quantization": "int8"},
    "spp": {"adapter.kind": "spp", "adapter.spp.rank": 4},
    "lora-ffn": {"adapter.kind": "lora", "adapter.lora.rank": 24, "adapter.lora.targets": FFN},
    "loramoe": {"adapter.kind": "loramoe", "adapter.loramoe.dropout": 0.0},
    "spiel": SPIEL,
    "spiel-gather": SPIEL | {"stage": "gather"},
}
OBJECTIVES: dict[str, dict[str, Any]] = {"sft": {}, "minor_sft": {"beta": 0.1}, "sftmix": {}}

SHAPE_NAMES = flags.DEFINE_list("shapes", ["tiny"], f"Of {', '.join(SHAPES)}.")
METHOD_NAMES = flags.DEFINE_list("methods", list(METHODS), f"Of {', '.join(METHODS)}.")
OBJECTIVE_NAMES = flags.DEFINE_list("objectives", ["sft"], f"Of {', '.join(OBJECTIVES)}.")
SUBMODELS = flags.DEFINE_integer("submodels", 0, "Sub-models at once, measured beside each adapter.", lower_bound=0)
ROWS = flags.DEFINE_integer("rows", 0, "Rows a step of each model; 0 is the shape's.", lower_bound=0)
LENGTH = flags.DEFINE_integer("length", 0, "Tokens a row; 0 is the shape's.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", 10, "Timed steps, after two that warm up.")
REMAT = flags.DEFINE_string("remat", "block", "See ModelConfig.remat.")
DTYPE = flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "See ModelConfig.dtype and param_dtype.")
FSDP = flags.DEFINE_integer("fsdp", -1, "See MeshConfig.fsdp.")
TENSOR = flags.DEFINE_integer("tensor", 1, "See MeshConfig.tensor.")


def main() -> str:
    print(
        f"{'shape':8} {'method':12} {'objective':10} {'tokens/s':>10} {'s/step':>9} {'compile s':>9} {'peak GiB':>9} "
        f"{'MFU':>6}"
    )
    objectives = _known(OBJECTIVE_NAMES.value, OBJECTIVES, "--objectives")
    for shape in _known(SHAPE_NAMES.value, SHAPES, "--shapes"):
        print(measure(shape, _known(METHOD_NAMES.value, METHODS, "--methods"), objectives), flush=True)
    device = jax.devices()[0]
    return f"{STEPS.value} timed steps each on {jax.device_count()} x {device.device_kind}"


class Contestant:
    """The compiled step of a method and an objective, its state, and the times of its steps; or of `count` sub-models.

    Attributes:
      compiling: seconds.
      peak: GiB a device, as planned by the compiler: what the device reports is the peak of all so far.
    """

    def __init__(self, shape: Shape, method: str, objective: str, count: int = 0):
        config = TrainConfig()
        config.model.remat = REMAT.value
        config.model.dtype = config.model.param_dtype = DTYPE.value
        settings = dict(METHODS[method])
        stage = settings.pop("stage", "")
        for path, value in settings.items():
            *nodes, name = path.split(".")
            setattr(functools.reduce(getattr, nodes, config), name, value)
        config.objective = ObjectiveConfig(objective, **OBJECTIVES[objective])
        config.mesh.fsdp, config.mesh.tensor = FSDP.value, TENSOR.value
        mesh = make_mesh(config.mesh)
        config.batch_size = max(shape.rows, data_shards(mesh))
        self.tokens = config.batch_size * shape.length * max(count, 1)
        batch = random_batch(shape, config.batch_size)
        program = build(config, shape.architecture(), mesh, [100] * count if count else 100, batch)
        if count:
            batch = submodels.stack([random_batch(shape, config.batch_size, seed) for seed in range(count)])
        began = time.perf_counter()
        self._step = program.compile(stage)
        self.compiling = time.perf_counter() - began
        memory = self._step.memory_analysis()
        peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        self.peak = (peak - memory.alias_size_in_bytes) / 2**30
        self._state, self._frozen = program.initial(program.random_base())
        self._batch = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), batch, program.batch)
        self.times: list[float] = []

    def step(self) -> None:
        """One step."""
        began = time.perf_counter()
        self._state, metrics = self._step(self._state, self._frozen, self._batch)
        jax.block_until_ready(metrics)
        self.times.append(time.perf_counter() - began)


def measure(name: str, methods: list[str], objectives: list[str]) -> str:
    """The lines of a shape."""
    shape, count = SHAPES[name], SUBMODELS.value
    shape = dataclasses.replace(shape, rows=ROWS.value or shape.rows, length=LENGTH.value or shape.length)
    together = {f"{method} x{count}": method for method in methods if count and method != "full"}
    contestants = {}
    for objective in objectives:
        contestants |= {(method, objective): Contestant(shape, method, objective) for method in methods}
        contestants |= {(x, objective): Contestant(shape, method, objective, count) for x, method in together.items()}
    for _ in range(STEPS.value + 2):
        for contestant in contestants.values():
            contestant.step()
    times = {pair: np.array(contestant.times[2:]) for pair, contestant in contestants.items()}
    best, lines = peak_flops(jax.devices()[0]), []
    for (method, objective), c in contestants.items():
        flops = flops_per_token(shape.architecture(), shape.length // 2, float(method == "full"))
        own = times[method, objective]
        seconds = float(np.median(own))
        mfu = f"{c.tokens * flops / seconds / best / jax.device_count():6.1%}" if best else "     -"
        line = f"{name:8} {method:12} {objective:10} {c.tokens / seconds:10.0f} {seconds:9.4f} {c.compiling:9.1f} "
        line += f"{c.peak:9.3f} {mfu}"
        if method in together:
            faster = np.median(count * times[together[method], objective] / own)
            lines.append(f"{line}   {faster:.3f} of the throughput of {count} runs in turn")
            continue
        against = (method, objectives[0]) if objective != objectives[0] else (methods[0], objective)
        if against != (method, objective):
            ratio = np.median(own / times[against])
            line += f"   {ratio:.3f} of the time of {against[0] if objective == objectives[0] else against[1]}"
        if (method, objective, against[1]) == ("full", "sftmix", "sft"):
            line += f", {least_ratio(shape):.3f} by FLOPs"
        lines.append(line)
    return "\n".join(lines)


def least_ratio(shape: Shape) -> float:
    """What full SFTMix must cost relative to plain fine-tuning, by the FLOPs of matrix products alone.

    The head sees half of the tokens, those that are supervised, and with mixtures a quarter more; where blocks are
    recomputed the layers count four products for three.
    """
    arch = shape.architecture()
    head = 3 * 2 * shape.embed * shape.vocab / 2
    layers = flops_per_token(arch, shape.length // 2, 1.0) - 3 * 2 * shape.embed * shape.vocab
    plain = layers * (4 / 3 if REMAT.value == "block" else 1) + head
    return (plain + head / 2) / plain


def random_batch(shape: Shape, rows: int, seed: int = 0) -> Batch:
    """Rows of a pair of examples each, of both the second half supervised, one of each type."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, shape.vocab, (rows, shape.length + 1), dtype=np.int32)
    half = shape.length // 2
    column = np.broadcast_to(np.arange(shape.length, dtype=np.int32), (rows, shape.length))
    ids, positions = column // half + 1, column % half
    weights = (positions >= half // 2).astype(np.float32)
    extras = {"example_index": np.arange(2 * rows, dtype=np.int32).reshape(rows, 2)}
    extras["member"] = np.broadcast_to(np.arange(2, dtype=np.int32), (rows, 2))
    extras["type"] = extras["member"]
    extras["reference_0"] = np.full((rows, 2), -np.log(shape.vocab) * half / 2, np.float32)
    return Batch(tokens[:, :-1], positions, ids, ids, tokens[:, 1:], weights, extras)


def _known(names: list[str], known: dict, flag: str) -> list[str]:
    for name in names:
        if name not in known:
            raise UserError(f"{flag} has no {name!r}; it has {', '.join(known)}{did_you_mean(name, known) or '.'}")
    return names


if __name__ == "__main__":
    cli.main(main)
