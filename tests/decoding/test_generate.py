"""Decoding against a Markov chain, whose continuations are known, and against a decoder run without cache."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.config import MeshConfig
from jaxsft.decoding.generate import Sampling, _batches, choose, generate, keep_likeliest
from jaxsft.errors import UserError
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh, tree_shardings
from tests.tiny import llama

KEY = jax.random.key(0)


class Chain:
    """A decoder whose next token depends on the last one alone: params is the matrix of transition logits."""

    def __init__(self, context=64):
        self.arch = types.SimpleNamespace(max_positions=context)

    def forward(self, params, tokens, positions, segment_ids, *, adapters=None, cache=None):
        return types.SimpleNamespace(hidden=params[tokens], cache=cache)

    def head_params(self, params, adapters):
        return ()

    def head(self, head_params, hidden):
        return hidden.astype(jnp.float32)

    def init_cache(self, batch, length):
        return jnp.zeros((batch, length))


def successor(size):
    """Transition logits under which t + 1 follows t, and 0 the last."""
    return 10.0 * jnp.roll(jnp.eye(size), 1, axis=1)


def test_greedy_follows_the_chain_and_stops():
    chain, params = Chain(), successor(12)
    new = generate(
        chain, params, None, [[0], [3, 5], [7, 7, 9], [4]], Sampling(max_new_tokens=6, stop_ids=(9, 11)), KEY
    )
    assert new == [[1, 2, 3, 4, 5, 6], [6, 7, 8, 9], [10, 11], [5, 6, 7, 8, 9]]


def test_context_ends_a_continuation():
    assert generate(
        Chain(context=8), successor(12), None, [[0], [1, 2, 3, 4, 5]], Sampling(max_new_tokens=20), KEY
    ) == [
        [1, 2, 3, 4, 5, 6, 7],
        [6, 7, 8],
    ]


@pytest.mark.parametrize("prompt", [[], list(range(8))])
def test_refuses_prompts_that_do_not_fit(prompt):
    with pytest.raises(UserError, match="prompt 1"):
        generate(Chain(context=8), successor(12), None, [[1], prompt], Sampling(), KEY)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0.0}, {"max_new_tokens": 0}])
def test_refuses_bad_sampling(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_keep_likeliest_closed_form():
    logits = jnp.log(jnp.array([[0.5, 0.05, 0.3, 0.15]]))
    kept = lambda k, p: np.isfinite(np.asarray(keep_likeliest(logits, k, p)))[0].tolist()
    assert kept(0, 1.0) == [True] * 4
    assert kept(1, 1.0) == [True, False, False, False]
    assert kept(3, 1.0) == [True, False, True, True]
    assert kept(0, 0.4) == [True, False, False, False]  # the likeliest alone reaches it
    assert kept(0, 0.7) == [True, False, True, False]
    assert kept(0, 0.9) == [True, False, True, True]
    assert kept(2, 0.9) == [True, False, True, False]  # 0.5 / 0.8 and 0.3 / 0.8 are left
    assert kept(2, 0.6) == [True, False, False, False]  # 0.5 / 0.8 = 0.625 reaches 0.6


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (2.0, 2)])
def test_frequencies_are_the_softmax(temperature, top_k):
    logits, draws = jnp.array([1.0, 0.0, 2.0, -1.0]), 20_000
    sampling = Sampling(temperature=temperature, top_k=top_k)
    tokens = choose(jnp.broadcast_to(logits, (draws, 4)), sampling, jax.random.split(KEY, draws))
    expected = np.exp(np.asarray(logits) / temperature)
    expected[np.argsort(expected)[: 4 - top_k if top_k else 0]] = 0
    expected /= expected.sum()
    observed = np.bincount(np.asarray(tokens), minlength=4) / draws
    assert np.all(np.abs(observed - expected) <= 4 * np.sqrt(expected * (1 - expected) / draws))


def test_samples_do_not_depend_on_the_batch():
    params = jax.random.normal(jax.random.key(1), (20, 20))
    prompts = [[i % 20] * (1 + i % 5) for i in range(7)]
    sampling = Sampling(temperature=1.0, max_new_tokens=9, stop_ids=(3,))
    whole = generate(Chain(), params, None, prompts, sampling, KEY)
    assert generate(Chain(), params, None, prompts, sampling, KEY, batch_size=2) == whole
    assert whole != generate(Chain(), params, None, prompts, sampling, jax.random.key(5))
    assert len({tuple(w) for w in generate(Chain(), params, None, [[1]] * 5, sampling, KEY)}) > 1


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([5, 40, 70], [3]),  # too few for programs of their own
        ([5] * 9 + [40] * 2 + [100], [8, 4]),
        ([5] * 5 + [40] * 6 + [100], [5, 6, 1]),  # no short prompt is padded to a longer one's width
        ([5] * 6 + [40] + [100] * 2, [6, 3]),
    ],
)
def test_long_prompts_do_not_widen_a_batch_of_short_ones(lengths, expected):
    batches = list(_batches(lengths[::-1], 8, 128))
    assert [len(batch) for batch in batches] == expected
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert [lengths[::-1][i] for batch in batches for i in batch] == sorted(lengths)


@pytest.fixture(scope="module")
def tiny():
    decoder = Decoder(llama(max_position_embeddings=64))
    params = jax.tree.map(lambda p: 2 * p if p.ndim > 1 else p, decoder.init(jax.random.key(2)))  # far from uniform
    return decoder, params


def test_greedy_is_the_argmax_of_a_full_forward(tiny):
    decoder, params = tiny
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 61, n).tolist() for n in (1, 33, 7, 40)]

    @jax.jit
    def next_token(row, length):
        ids = (jnp.arange(row.shape[1]) < length).astype(jnp.int32)[None]
        hidden = decoder.forward(params, row, jnp.arange(row.shape[1])[None], ids).hidden[0, length - 1]
        return jnp.argmax(decoder.head(decoder.head_params(params, None), hidden))

    expected = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(12):
            row = np.zeros((1, 64), np.int32)
            row[0, : len(tokens)] = tokens
            tokens.append(int(next_token(row, len(tokens))))
        expected.append(tokens[len(prompt) :])
    assert len({tuple(e) for e in expected}) == 4
    assert generate(decoder, params, None, prompts, Sampling(max_new_tokens=12), KEY) == expected
    assert generate(decoder, params, None, prompts, Sampling(max_new_tokens=12), KEY, batch_size=1) == expected


def test_sharded_parameters_generate_the_same(tiny):
    decoder, params = tiny
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    sharded = jax.device_put(params, tree_shardings(decoder.logical_axes(), params, mesh))
    prompts, sampling = [[5, 9, 2], [7], [30, 31]], Sampling(temperature=0.7, top_k=20, top_p=0.9, max_new_tokens=6)
    with jax.set_mesh(mesh):
        new = generate(decoder, sharded, None, prompts, sampling, KEY)
    assert new == generate(decoder, params, None, prompts, sampling, KEY)


def test_real_model_greedy_ids(real_data):
    folder = real_data / "models" / "stories260K"
    golden = np.load(folder / "golden.npz")
    decoder = Decoder(load_architecture(folder))
    params = load_params(folder, decoder, param_dtype=jnp.float32)
    prompt, expected = golden["prompt_ids"].tolist(), golden["greedy_ids"].tolist()
    new = generate(
        decoder, params, None, [prompt, prompt[:1]], Sampling(max_new_tokens=len(expected) - len(prompt)), KEY
    )
    assert prompt + new[0] == expected
