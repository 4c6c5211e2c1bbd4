"""Speed of generation against `transformers`: python scripts/benchmark_generate.py --model=DIR [--torch=PYTHON].

Greedy continuations of `--rows` prompts of 16 random tokens by `--new_tokens`, no end of text: this library in this
process, and `transformers.generate` (float32, KV cache, eager attention or what it takes by itself) in one of its own
under `--torch`, a Python that has torch and transformers; and both must write the same tokens. After a call each to
warm up they are timed in turns, since a machine that others use is fast at one time and slow at another. Prints a line
for each, and the median of the ratios.
"""

import contextlib
import json
import os
import statistics
import subprocess
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
folder, prompts, new_tokens = json.loads(sys.stdin.readline())
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
model.generation_config.eos_token_id = model.config.eos_token_id = None
settings = transformers.GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
ids = torch.tensor(prompts)
versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
print(f"{versions}, {torch.get_num_threads()} threads", flush=True)
for _ in sys.stdin:  # a line asks for a call
    began = time.perf_counter()
    with torch.no_grad():
        new = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[:, ids.shape[1]:]
    print(json.dumps([time.perf_counter() - began, new.tolist()]), flush=True)
"""


def main() -> str:
    if not MODEL.value:
        raise UserError("--model is missing; name a Hugging Face folder.")
    mesh = make_mesh(MeshConfig())
    model = open_model(MODEL.value, ModelConfig(path=MODEL.value, dtype="float32"), mesh)
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, model.decoder.arch.vocab_size, (ROWS.value, 16)).tolist()
    sampler = Sampler(model.decoder, Sampling(max_new_tokens=NEW_TOKENS.value), mesh, batch_size=ROWS.value)

    def ours() -> tuple[float, list[list[int]]]:
        began = time.perf_counter()
        new = [one.tokens for one in sampler.generate(model.params, prompts, adapters=model.adapters)]
        return time.perf_counter() - began, new

    ours()
    if TORCH.value is None:
        _show("jaxsft", [ours()[0] for _ in range(REPEATS.value)])
        return f"{ROWS.value} x {NEW_TOKENS.value} tokens; give --torch=PYTHON to compare"
    theirs = Theirs(TORCH.value, [MODEL.value, prompts, NEW_TOKENS.value])
    theirs()
    turns = [(ours(), theirs()) for _ in range(REPEATS.value)]
    _show("jaxsft", [one for (one, _), _ in turns])
    _show(theirs.version, [other for _, (other, _) in turns])
    ratio = statistics.median(other / one for (one, _), (other, _) in turns)
    (_, own), (_, other) = turns[-1]
    same = sum(a == b for a, b in zip(own, other))
    return f"{ratio:.1f} times as fast, in turns; {same} of {ROWS.value} continuations are the same"


class Theirs:
    """`transformers` in a process of its own; a call is one of `generate`: (seconds, new tokens)."""

    def __init__(self, python: str, asked: list):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._python, pipe = python, subprocess.PIPE
        self._process = subprocess.Popen([python, "-c", THEIRS], stdin=pipe, stdout=pipe, text=True, env=environment)
        self.version = self._ask(json.dumps(asked))

    def __call__(self) -> tuple[float, list[list[int]]]:
        """Seconds and tokens of one call."""
        seconds, new = json.loads(self._ask("again"))
        return seconds, new

    def _ask(self, line: str) -> str:
        with contextlib.suppress(BrokenPipeError):  # what it died of stands on its stderr
            print(line, file=self._process.stdin, flush=True)
        if answer := self._process.stdout.readline():
            return answer.strip()
        raise UserError(f"{self._python} failed, as above; name a Python with torch and transformers.")


def _show(name: str, seconds: list[float]) -> None:
    median = statistics.median(seconds)
    rate = ROWS.value * NEW_TOKENS.value / median
    print(f"{name}: {median:.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), {rate:.0f} tokens a second")


if __name__ == "__main__":
    cli.main(main)
