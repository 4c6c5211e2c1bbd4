"""The votes of nearest neighbours against closed forms and a brute-force search, and the blend in decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.lora import LoRA
from jaxsft.config import LoRAConfig
from jaxsft.decoding.engine import Sampler, Step
from jaxsft.decoding.neighbours import Neighbours, collect, nearest, typical_distance
from jaxsft.decoding.sampling import Sampling
from jaxsft.errors import UserError
from jaxsft.models.decoder import Decoder
from tests.tiny import llama

RNG = np.random.default_rng(0)
KEYS, VALUES = RNG.normal(size=(40, 8)).astype(np.float32), RNG.integers(0, 12, 40).astype(np.int32)
HIDDEN, LOGITS = RNG.normal(size=(5, 8)).astype(np.float32), RNG.normal(size=(5, 12)).astype(np.float32)
STORE = Neighbours(KEYS, VALUES, neighbours=7, weight=0.3, temperature=4.0)


def blend(store):
    step = Step(jnp.asarray(HIDDEN), *(jnp.zeros(5, jnp.int32),) * 3)
    return np.asarray(jax.jit(lambda store: store(step, jnp.asarray(LOGITS)))(store))


def changed(**fields):
    return dataclasses.replace(STORE, **fields)


def votes(**fields):
    return np.asarray(changed(**fields).votes(jnp.asarray(HIDDEN), 12))


@pytest.mark.parametrize("squared", [True, False])
def test_votes_by_the_formula(squared):
    """Query, softmax and sum by value in float64, one state at a time."""
    expected = np.zeros((5, 12))
    for row, state in enumerate(HIDDEN.astype(np.float64)):
        distances = ((KEYS - state) ** 2).sum(1) if squared else np.sqrt(((KEYS - state) ** 2).sum(1))
        near = np.argsort(distances)[:7]
        shares = np.exp(-distances[near] / 4.0)
        np.add.at(expected[row], VALUES[near], shares / shares.sum())
    np.testing.assert_allclose(votes(squared=squared), expected, atol=1e-6)
    np.testing.assert_allclose(expected.sum(1), 1)
    own = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(blend(changed(squared=squared))), 0.3 * expected + 0.7 * own, atol=1e-6)


def test_limits():
    np.testing.assert_allclose(blend(changed(weight=0.0)), jax.nn.log_softmax(LOGITS), atol=1e-6)
    np.testing.assert_allclose(np.exp(blend(changed(weight=1.0))), votes(), atol=1e-6)
    near = nearest(KEYS, HIDDEN, 1)[1][:, 0, 0]
    np.testing.assert_array_equal(votes(neighbours=1), np.eye(12)[VALUES[near]])
    indices = np.asarray(nearest(KEYS, HIDDEN, 7)[1])[:, 0]
    frequencies = np.eye(12)[VALUES[indices]].mean(1)
    np.testing.assert_allclose(votes(temperature=1e9), frequencies, atol=1e-6)


def test_order_and_number_of_the_same_keys():
    order = RNG.permutation(40)
    np.testing.assert_allclose(votes(keys=KEYS[order], values=VALUES[order]), votes(), atol=1e-6)
    twice = votes(keys=np.repeat(KEYS, 2, 0), values=np.repeat(VALUES, 2), neighbours=14)
    np.testing.assert_allclose(twice, votes(), atol=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_chunks_are_a_brute_force_search(heads):
    distances, indices = nearest(KEYS, HIDDEN, 7, heads, chunk=6)
    parts = lambda x: x.reshape(len(x), heads, -1).astype(np.float64)
    every = ((parts(HIDDEN)[:, None] - parts(KEYS)) ** 2).sum(-1).transpose(0, 2, 1)
    np.testing.assert_array_equal(indices, np.argsort(every, -1)[..., :7])
    np.testing.assert_allclose(distances, np.sort(every, -1)[..., :7], atol=1e-5)


def test_heads_are_averaged():
    """exp(-H d / T) of each of H parts (`getCache.py` of the authors)."""
    half = lambda at: changed(keys=KEYS[:, at], temperature=4.0 / 2).votes(jnp.asarray(HIDDEN[:, at]), 12)
    expected = (half(slice(0, 4)) + half(slice(4, 8))) / 2
    np.testing.assert_allclose(votes(heads=2), expected, atol=1e-6)


def test_typical_distance():
    assert typical_distance(KEYS, KEYS, 1) == pytest.approx(0, abs=1e-5)
    assert typical_distance(np.zeros((3, 2)), np.array([[3.0, 4.0]]), 2) == pytest.approx(25)
    assert typical_distance(np.zeros((3, 4)), np.array([[3.0, 4.0, 4.0, 3.0]]), 2, heads=2) == pytest.approx(50)
    assert typical_distance(np.zeros((3, 2)), np.array([[1.0, 0], [3, 4], [10, 0]]), 1) == pytest.approx(25), "median"


def test_states_are_those_of_the_last_tokens_under_the_adapter():
    """Of prompts of several lengths in batches of two, with an adapter and with the model that it makes."""
    arch = llama()
    decoder, method = Decoder(arch), LoRA(LoRAConfig(rank=2), arch)
    parts = method.split(decoder.init(jax.random.key(2)), jax.random.key(5))
    parts = parts._replace(params=jax.tree.map(lambda x: x + 0.3 * RNG.normal(size=x.shape), parts.params))
    base, adapters = method.compose(parts, method.probes(parts))
    merged = method.merge(parts)
    prompts = [[5, 9, 2], [7], list(range(1, 40))]
    keys, values = collect(decoder, base, prompts, [1, 2, 3], adapters, batch_size=2)
    assert values.tolist() == [1, 2, 3]
    for prompt, key in zip(prompts, keys):
        ids, places = np.array([prompt]), np.arange(len(prompt))[None]
        hidden = lambda params, ids=ids, places=places: decoder.forward(params, ids, places, np.ones_like(ids)).hidden
        np.testing.assert_allclose(key, hidden(merged)[0, -1], atol=1e-4)
        assert np.abs(key - hidden(base)[0, -1]).max() > 0.01


def test_a_model_is_taught_by_its_store():
    """A store of prompts and other answers than the model's own: with it the model gives those, wherever asked."""
    decoder = Decoder(llama())
    params = decoder.init(jax.random.key(2))
    prompts = [[5, 9, 2], [7], list(range(1, 40)), [30, 31]]
    first = lambda **settings: [
        one.tokens[0] for one in Sampler(decoder, Sampling(max_new_tokens=1), **settings).generate(params, prompts)
    ]
    wanted = [(token + 1) % 64 for token in first()]
    keys, values = collect(decoder, params, prompts, wanted, batch_size=3)
    store = Neighbours(keys, values, neighbours=1, weight=0.9)
    assert first(processor=store) == wanted
    assert first(processor=dataclasses.replace(store, weight=0.0)) == first()
    for wrong in ({"weight": 1.5}, {"temperature": 0.0}, {"neighbours": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            dataclasses.replace(store, **wrong)
    with pytest.raises(UserError, match="no store"):
        collect(decoder, params, prompts, wanted[1:])
