"""What a merge holds at once, measured: peak resident memory above that of a process that has merged the same."""

import json
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.models import weights
from jaxsft.models.checkpoint import copy_companions, write_tensors
from jaxsft.models.decoder import Decoder
from tests.tiny import llama
from tests.training.conftest import run

WIDTH, VOCABULARY, COUNT = 1024, 8192, 3  # the embedding is the largest tensor, 32 MiB in float32

MEASURED = """
    import ctypes, gc, json, re, shutil, sys
    import jaxsft.cli
    from jaxsft.config import MergeConfig
    from jaxsft.merging.merge import merge
    config = MergeConfig(**json.loads(sys.argv[1]))
    config.models, config.density = tuple(config.models), tuple(config.density)
    resident = lambda name: int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    merge(config, sys.argv[2])  # compiles
    shutil.rmtree(sys.argv[2])
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")
    before = resident("VmRSS")
    merge(config, sys.argv[2])
    print(resident("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Float32 models of one layer whose embedding outweighs all else."""
    here = tmp_path_factory.mktemp("large")
    arch = llama(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=1, head_dim=256, tie_word_embeddings=True)
    tensors = {tensor.name: tensor for tensor in weights.tensors(Decoder(arch))}
    for k in range(COUNT + 1):
        rng = np.random.default_rng(k)
        (here / str(k)).mkdir()
        draw = lambda name: rng.standard_normal(tensors[name].shape, np.float32)  # noqa: B023
        write_tensors(here / str(k), {n: (np.dtype(jnp.float32), t.shape) for n, t in tensors.items()}, draw)
        copy_companions("world:base", here / str(k))
        (here / str(k) / "config.json").write_text(json.dumps(arch.to_hf("float32")))
    return [str(here / str(k)) for k in range(COUNT + 1)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("method", "arrays"), [("linear", COUNT + 2), ("ties", 2 * COUNT + 4), ("karcher", COUNT + 2)])
def test_memory_is_that_of_a_few_tensors(models, tmp_path, method, arrays):
    """As docs/merging.md has it: so many times the largest tensor in float32, and the one that is written."""
    config = {"method": method, "models": models[1:], "density": [0.3 if method == "ties" else 1.0]}
    config |= {"base": models[0]} if method == "ties" else {}
    done = run([sys.executable, "-c", textwrap.dedent(MEASURED), json.dumps(config), str(tmp_path / "merged")])
    assert done.returncode == 0, done.stderr
    peak, largest = int(done.stdout.splitlines()[-1]), WIDTH * VOCABULARY * 4
    assert largest < peak < (arrays + 1) * largest, f"{peak / largest:.2f} times the largest tensor"
    print(f"{method}: {peak / largest:.2f} times the largest tensor, {arrays + 1} are allowed")
