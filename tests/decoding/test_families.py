"""Greedy continuations of every family against those of `transformers`, with and without a cache, however padded."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.config import MeshConfig
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.sampling import Sampling
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh
from tests.decoding.make_greedy import NEW
from tests.models.make_golden import CASES, GOLDEN

RECORDED = np.load(Path(__file__).parent / "greedy.npz")
PROMPTS = [row[row >= 0].tolist() for row in RECORDED["prompts"]]


def load(case, mesh=None):
    decoder = Decoder(load_architecture(GOLDEN / case))
    return decoder, load_params(GOLDEN / case, decoder, mesh, param_dtype=jnp.float32)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_transformers(case):
    """All prompts at once, few at a time, and one alone."""
    decoder, params = load(case)
    expected = RECORDED[case].tolist()
    for size, count in ((32, 32), (6, 32), (1, 3)):
        sampler = Sampler(decoder, Sampling(max_new_tokens=NEW), batch_size=size)
        sampled = sampler.generate(params, PROMPTS[:count])
        assert [one.tokens for one in sampled] == expected[:count]
        assert {one.stopped_by for one in sampled} == {"length"}


@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_greedy_tokens_on_eight_devices(case):
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    decoder, params = load(case, mesh)
    sampled = Sampler(decoder, Sampling(max_new_tokens=NEW), mesh, batch_size=16).generate(params, PROMPTS)
    assert [one.tokens for one in sampled] == RECORDED[case].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_without_cache(case, side):
    """The model reads the whole row again for every token, padded on either side."""
    decoder, params = load(case)
    lengths, width = np.array([len(prompt) for prompt in PROMPTS]), max(map(len, PROMPTS)) + NEW

    @jax.jit
    def following(rows, lengths):
        places = jnp.arange(width) - (width - lengths[:, None] if side == "left" else 0)
        real = (places >= 0) & (places < lengths[:, None])
        hidden = decoder.forward(params, rows, jnp.where(real, places, 0), real.astype(jnp.int32)).hidden
        at = jnp.full(len(lengths), width - 1) if side == "left" else lengths - 1
        last = jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0]
        return jnp.argmax(decoder.head(params, last), axis=-1)

    rows = [list(prompt) for prompt in PROMPTS]
    for _ in range(NEW):
        table = np.zeros((len(rows), width), np.int32)
        for line, row in zip(table, rows):
            line[slice(width - len(row), None) if side == "left" else slice(len(row))] = row
        for row, token in zip(rows, np.asarray(following(table, lengths)).tolist()):
            row.append(token)
        lengths = lengths + 1
    assert [row[len(prompt) :] for row, prompt in zip(rows, PROMPTS)] == RECORDED[case].tolist()


@pytest.mark.parametrize("case", CASES)
def test_left_padded_prompts_with_a_cache(case):
    """`Decoder.forward` itself: padding before the prompt takes no slot, so decoding goes on at the same places."""
    decoder, params = load(case)
    lengths, width = np.array([len(prompt) for prompt in PROMPTS]), max(map(len, PROMPTS))
    table = np.zeros((len(PROMPTS), width), np.int32)
    for line, prompt in zip(table, PROMPTS):
        line[width - len(prompt) :] = prompt
    places = np.arange(width) - (width - lengths[:, None])
    step, head = jax.jit(decoder.forward), jax.jit(decoder.head)
    cache = decoder.init_cache(len(PROMPTS), width + NEW)
    output = step(params, table, np.maximum(places, 0), (places >= 0).astype(np.int32), cache=cache)
    new = []
    for n in range(NEW):
        new.append(np.asarray(jnp.argmax(head(params, output.hidden[:, -1]), axis=-1), np.int32))
        one = np.ones((len(PROMPTS), 1), np.int32)
        output = step(params, new[-1][:, None], lengths[:, None] + n, one, cache=output.cache)
    assert np.stack(new, 1).tolist() == RECORDED[case].tolist()
