"""Speed of generation against `transformers`: python scripts/benchmark_generate.py [--model=DIR] [--torch=PYTHON].

Greedy continuations of `--rows` prompts of 16 random tokens by `--new_tokens`, no end of text: this library in this
process, then `transformers.generate` (float32, KV cache, eager attention or what it takes by itself) in one of its own
under `--torch`, a Python that has torch and transformers; and both must write the same tokens. Each is warmed up by one
whole call, and timed over `--repeats`. Prints a line for each, and the ratio of the medians.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
from absl import flags

from jaxsft import cli
from jaxsft.config import MeshConfig, ModelConfig
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.sampling import Sampling
from jaxsft.errors import UserError
from jaxsft.sharding import make_mesh
from jaxsft.training.restore import open_model

MODEL = flags.DEFINE_string("model", None, "Hugging Face folder of a model that both can open.")
TORCH = flags.DEFINE_string("torch", None, "A Python with torch and transformers; without, only this library is timed.")
ROWS = flags.DEFINE_integer("rows", 32, "Prompts, all decoded at once.", lower_bound=1)
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "Tokens written for each.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls.", lower_bound=1)

THEIRS = """
import json, sys, time, torch, transformers
folder, prompts, new_tokens, repeats = json.load(sys.stdin)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
model.generation_config.eos_token_id = model.config.eos_token_id = None
settings = transformers.GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
ids, seconds = torch.tensor(prompts), []
for _ in range(1 + repeats):
    began = time.perf_counter()
    with torch.no_grad():
        new = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[:, ids.shape[1]:]
    seconds.append(time.perf_counter() - began)
version = f"transformers {transformers.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads"
print(json.dumps([seconds[1:], new.tolist(), version]))
"""


def main() -> str:
    if not MODEL.value:
        raise UserError("--model is missing; name a Hugging Face folder.")
    mesh = make_mesh(MeshConfig())
    model = open_model(MODEL.value, ModelConfig(path=MODEL.value, dtype="float32"), mesh)
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, model.decoder.arch.vocab_size, (ROWS.value, 16)).tolist()
    sampler = Sampler(model.decoder, Sampling(max_new_tokens=NEW_TOKENS.value), mesh, batch_size=ROWS.value)
    seconds = []
    for _ in range(1 + REPEATS.value):
        began = time.perf_counter()
        new = [one.tokens for one in sampler.generate(model.params, prompts, adapters=model.adapters)]
        seconds.append(time.perf_counter() - began)
    ours = _show("jaxsft", seconds[1:])
    if TORCH.value is None:
        return f"{ROWS.value} x {NEW_TOKENS.value} tokens; give --torch=PYTHON to compare"
    asked = json.dumps([MODEL.value, prompts, NEW_TOKENS.value, REPEATS.value])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([TORCH.value, "-c", THEIRS], input=asked, capture_output=True, text=True, env=environment)
    if run.returncode:
        print(run.stderr, file=sys.stderr)
        raise UserError(f"{TORCH.value} failed, as above; name a Python with torch and transformers.")
    their_seconds, their_tokens, version = json.loads(run.stdout.splitlines()[-1])
    theirs = _show(version, their_seconds)
    same = sum(a == b for a, b in zip(new, their_tokens))
    return f"{theirs / ours:.1f} times as fast; {same} of {ROWS.value} continuations are the same"


def _show(name: str, seconds: list[float]) -> float:
    """Prints and returns the median."""
    median = statistics.median(seconds)
    rate = ROWS.value * NEW_TOKENS.value / median
    print(f"{name}: {median:.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), {rate:.0f} tokens a second")
    return median


if __name__ == "__main__":
    cli.main(main)
