"""Times merges of random models, and their peak memory: python scripts/benchmark_merge.py [--mergekit=PYTHON].

A Llama of `--shape` in bfloat16 and models near it are written to a temporary folder; each method merges them in a
process of its own, by `scripts/merge.py` on one CPU device and, with `--mergekit` (a Python that has it), by mergekit,
one after the other. CPU time is that of all threads, and says more than seconds where other work shares the cores. Peak
memory is the highest resident size of the process, imports and mapped files included.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxsft import cli
from jaxsft.errors import UserError
from jaxsft.models import weights
from jaxsft.models.architecture import Architecture
from jaxsft.models.checkpoint import copy_companions, write_tensors
from jaxsft.models.decoder import Decoder

# width, MLP width, layers, heads, key-value heads, vocabulary
SHAPES = {
    "tiny": (64, 172, 2, 4, 2, 512),
    "small": (1024, 4096, 8, 16, 8, 32000),
    "1b": (2048, 8192, 16, 32, 8, 128256),
}
METHODS = {"linear": {}, "ties": {"density": 0.3}}
SHAPE = flags.DEFINE_enum("shape", "1b", list(SHAPES), "The models.")
MODELS = flags.DEFINE_integer("models", 2, "How many are merged.")
MERGEKIT = flags.DEFINE_string("mergekit", "", "A Python that has mergekit; without it this library alone is timed.")
ONLY = flags.DEFINE_list("methods", list(METHODS), "Which merges.")
OUTPUT = flags.DEFINE_string("output", "", "A JSON file for the figures.")
FOLDER = flags.DEFINE_string("folder", "", "Where the models are written; default: the system's temporary folder.")


def main() -> str:
    if MODELS.value < 2:
        raise UserError(f"--models is {MODELS.value}; merge two or more.")
    if unknown := set(ONLY.value) - METHODS.keys():
        raise UserError(f"--methods names {', '.join(sorted(unknown))}; known are {', '.join(METHODS)}.")
    rows = []
    with tempfile.TemporaryDirectory(dir=FOLDER.value or None) as folder:
        names = [str(Path(folder) / name) for name in ["base", *(f"model{k}" for k in range(MODELS.value))]]
        sizes = [_write(name, k) for k, name in enumerate(names)]
        numbers = sizes[0]
        print(f"{MODELS.value} models of {numbers / 1e9:.3g}e9 parameters and their base, bfloat16", flush=True)
        for method in ONLY.value:
            settings = METHODS[method]
            commands = {"jaxsft": _ours(method, settings, names)}
            if MERGEKIT.value:
                commands["mergekit"] = _mergekit(method, settings, names, Path(folder))
            for who, command in commands.items():
                output = str(Path(folder) / f"{who}_{method}")
                seconds, cpu, peak = _time([argument.replace("OUTPUT", output) for argument in command])
                row = {"method": method, "by": who, "seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak}
                rows.append(row)
                print(f"{method:8} {who:9} {seconds:7.1f} s  {cpu:7.1f} s of CPU  {peak / 1e9:6.2f} GB", flush=True)
                subprocess.run(["rm", "-rf", output], check=True)
    figures = {
        "shape": SHAPE.value,
        "parameters": numbers,
        "models": MODELS.value,
        "cores": os.cpu_count(),
        "runs": rows,
    }
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(figures, indent=2) + "\n")
    return f"{len(rows)} merges of {SHAPE.value}" + (f", written to {OUTPUT.value}" if OUTPUT.value else "")


def _write(path: str, model: int) -> int:
    """A model folder; model 0 is the base. Returns its number of parameters."""
    width, mlp, layers, heads, kv_heads, vocabulary = SHAPES[SHAPE.value]
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "vocab_size": vocabulary}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "tie_word_embeddings": True}
    arch = Architecture.from_hf({"model_type": "llama", **sizes})
    tensors = {tensor.name: tensor for tensor in weights.tensors(Decoder(arch))}
    block = np.random.default_rng(0).standard_normal(1 << 22).astype(np.float32)  # drawn once: drawing takes long

    def produce(name: str) -> np.ndarray:
        tensor, shift = tensors[name], sum(name.encode())
        flat = np.resize(np.roll(block, shift), tensor.size) * 0.02
        if model:
            flat += np.resize(np.roll(block, shift + 7919 * model), tensor.size) * 1e-3
        return flat.reshape(tensor.shape).astype(jnp.bfloat16)

    folder = Path(path)
    folder.mkdir()
    write_tensors(folder, {name: (np.dtype(jnp.bfloat16), tensor.shape) for name, tensor in tensors.items()}, produce)
    copy_companions("world:base", folder)
    (folder / "config.json").write_text(json.dumps(arch.to_hf("bfloat16")))
    return sum(tensor.size for tensor in tensors.values())


def _ours(method: str, settings: dict[str, float], names: list[str]) -> list[str]:
    scripts = Path(__file__).resolve().parent
    config = scripts.parent / "configs" / "merge" / "linear.py"
    command = [sys.executable, str(scripts / "merge.py"), f"--config={config}", "--output=OUTPUT"]
    command += [f"--config.method={method}", f"--config.models={tuple(names[1:])}"]
    command += [f"--config.{name}=({value},)" for name, value in settings.items()]
    return command + ([f"--config.base={names[0]}"] if method != "linear" else [])


def _mergekit(method: str, settings: dict[str, float], names: list[str], folder: Path) -> list[str]:
    models = [{"model": name, "parameters": {"weight": 1.0, **settings}} for name in names[1:]]
    config = {"merge_method": method, "models": models, "dtype": "float32", "out_dtype": "bfloat16"}
    config |= {"base_model": names[0]} if method != "linear" else {}
    file = folder / f"{method}.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    run = "import sys; from mergekit.scripts.run_yaml import main; main()"
    return [MERGEKIT.value, "-c", run, str(file), "OUTPUT", "--no-copy-tokenizer", "--no-write-model-card"]


def _time(command: list[str]) -> tuple[float, float, int]:
    """Seconds, seconds of CPU, and the peak resident size in bytes."""
    start = time.perf_counter()
    changes = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=os.environ | changes, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            errors.seek(0)
            raise UserError(f"{command[0]} failed: {errors.read().strip().splitlines()[-1]}.")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


if __name__ == "__main__":
    cli.main(main)
