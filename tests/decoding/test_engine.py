"""Decoding against a Markov chain, whose continuations are known, and against a decoder run without cache."""

import dataclasses
import types
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.registry import make_method
from jaxsft.config import AdapterConfig, MeshConfig, TrainConfig
from jaxsft.decoding.engine import Sampler, _admit, _advance, _Run, groups, parts_of
from jaxsft.decoding.sampling import Sampling
from jaxsft.errors import UserError
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh, tree_shardings
from tests.tiny import llama


def generate(decoder, params, adapters, prompts, sampling, mesh=None, **settings):
    """The new tokens alone."""
    sampled = Sampler(decoder, sampling, mesh, **settings).generate(params, prompts, adapters=adapters)
    return [one.tokens for one in sampled]


class Chain:
    """A decoder whose next token depends on the last one alone: params is the matrix of transition logits."""

    def __init__(self, context=64):
        self.arch = types.SimpleNamespace(max_positions=context, vocab_size=20)

    def forward(self, params, tokens, positions, segment_ids, *, adapters=None, cache=None, reach=None):
        return types.SimpleNamespace(hidden=params[tokens], cache=cache)

    def head_params(self, params, adapters):
        return ()

    def head(self, head_params, hidden):
        return hidden.astype(jnp.float32)

    def init_cache(self, batch, length):
        return {"segment_ids": jnp.zeros((batch, length), jnp.int32), "stacks": {}}


def successor(size):
    """Transition logits under which t + 1 follows t, and 0 the last."""
    return 10.0 * jnp.roll(jnp.eye(size), 1, axis=1)


def test_greedy_follows_the_chain_and_stops():
    chain, params = Chain(), successor(12)
    new = generate(chain, params, None, [[0], [3, 5], [7, 7, 9], [4]], Sampling(max_new_tokens=6, stop_ids=(9, 11)))
    assert new == [[1, 2, 3, 4, 5, 6], [6, 7, 8, 9], [10, 11], [5, 6, 7, 8, 9]]


def test_context_ends_a_continuation():
    assert generate(Chain(context=8), successor(12), None, [[0], [1, 2, 3, 4, 5]], Sampling(max_new_tokens=20)) == [
        [1, 2, 3, 4, 5, 6, 7],
        [6, 7, 8],
    ]


@pytest.mark.parametrize("prompt", [[], list(range(8))])
def test_refuses_prompts_that_do_not_fit(prompt):
    with pytest.raises(UserError, match="prompt 1"):
        generate(Chain(context=8), successor(12), None, [[1], prompt], Sampling())


def test_samples_depend_on_seed_and_id_alone():
    chain, params = Chain(), jax.random.normal(jax.random.key(1), (20, 20))
    prompts = [[i % 20] * (1 + i % 5) for i in range(7)]
    sampling = Sampling(temperature=1.0, max_new_tokens=9, stop_ids=(3,))
    whole = Sampler(chain, sampling).generate(params, prompts)
    ids = list(range(7))[::-1]
    for size in (1, 3):
        assert Sampler(chain, sampling, batch_size=size).generate(params, prompts) == whole
        assert Sampler(chain, sampling, batch_size=size).generate(params, prompts[::-1], ids)[::-1] == whole
    assert Sampler(chain, sampling).generate(params, prompts[2:3], [2]) == whole[2:3]
    other = dataclasses.replace(sampling, seed=5)
    assert whole != Sampler(chain, other).generate(params, prompts)
    assert len({tuple(w) for w in generate(chain, params, None, [[1]] * 5, sampling)}) > 1


def test_continuations_of_a_chain_have_its_distribution():
    """Pearson's chi-square of pairs of tokens over the whole engine, below the quantile of one run in a million."""
    logits = jax.random.normal(jax.random.key(3), (4, 4))
    expected = np.asarray(jax.nn.softmax(logits))
    sampling = Sampling(temperature=1.0, max_new_tokens=8)
    new = np.array(generate(Chain(), logits, None, [[i % 4] for i in range(2000)], sampling, batch_size=500))
    before, after = np.concatenate([np.arange(2000)[:, None] % 4, new], axis=1)[:, :-1].ravel(), new.ravel()
    counts = np.zeros((4, 4))
    np.add.at(counts, (before, after), 1)
    expected = counts.sum(1, keepdims=True) * expected
    assert np.sum((counts - expected) ** 2 / expected) < 50.8  # scipy.stats.chi2.isf(1e-6, 4 * 3)


@pytest.mark.parametrize("ids", [[1], [0, -1], [0, 2**32]])
def test_refuses_ids_that_are_none(ids):
    with pytest.raises(UserError, match="one id"):
        Sampler(Chain(), Sampling()).generate(successor(12), [[1], [2]], ids)


def test_what_ended_a_continuation():
    ends = lambda prompt, **settings: Sampler(
        Chain(context=8), Sampling(**settings), text=lambda prompt, new: "".join(f"<{i}>" for i in new)
    ).generate(successor(12), [prompt])[0]
    assert ends([0], stop_ids=(3,)).stopped_by == "token"
    assert ends([0], max_new_tokens=3).stopped_by == "length"
    assert ends([0], max_new_tokens=7).stopped_by == "length"
    assert ends([0], max_new_tokens=8).stopped_by == "context"
    found = ends([0], stop_strings=("nothing", "2><3"), max_new_tokens=6)
    assert (found.tokens, found.stopped_by, len(found.logps)) == ([1, 2, 3], "string", 3)
    assert ends([0], stop_strings=("2><3",), stop_ids=(2,)).stopped_by == "token"
    assert ends([0], stop_strings=("2><3",), stop_ids=(4,)).stopped_by == "string"
    with pytest.raises(UserError, match="no tokenizer"):
        Sampler(Chain(), Sampling(stop_strings=("x",)))


def test_a_stop_string_frees_its_row():
    """Rows that would run to the end make room for others, which are not touched by it."""
    text = lambda prompt, new: "".join(f"<{i}>" for i in new)
    sampling = Sampling(stop_strings=("<9><10>",), max_new_tokens=50)
    sampler = Sampler(Chain(), sampling, batch_size=2, text=text)
    sampled = sampler.generate(successor(12), [[i] for i in range(9)])
    assert [one.tokens for one in sampled] == [list(range(i + 1, 11)) for i in range(9)]


@pytest.mark.parametrize(
    ("prompts", "size", "steps"),
    [
        ([[35]] * 4, 4, 3),  # all are done after four tokens, of fifty that they might have
        ([[9]] + [[29]] * 3, 2, 29),  # the second slot has three prompts while the first has one
        ([[29]] * 7, 2, 36),  # three pairs and one alone
    ],
)
def test_no_step_is_made_for_nothing(prompts, size, steps):
    """The loop ends with its last row, and a slot that is free takes the next prompt. A prompt's first token is made
    where it is read, each other one by a step of all slots."""
    counts = []

    def note(step, logits):
        jax.debug.callback(lambda count: counts.append(int(count.max())), step.count)
        return logits

    sampler = Sampler(Chain(), Sampling(max_new_tokens=50, stop_ids=(39,)), batch_size=size, processor=note)
    sampled = sampler.generate(successor(40), prompts)
    jax.effects_barrier()
    assert [one.tokens for one in sampled] == [list(range(prompt[0] + 1, 40)) for prompt in prompts]
    assert sum(count > 0 for count in counts) == steps
    assert len(prompts) > size or counts.count(0) == 1  # none waits for a slot, so all are read at once


def test_a_penalty_drives_the_chain_away():
    """Greedy with a penalty that no logit outweighs: every token of prompt and continuation comes once."""
    params = 1.0 + jax.random.uniform(jax.random.key(4), (20, 20))
    (new,) = generate(Chain(), params, None, [[3, 7, 3]], Sampling(repetition_penalty=10.0, max_new_tokens=18))
    assert sorted([3, 7, *new]) == list(range(20))


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([5, 40, 70], [3]),  # too few for a program of their own
        ([5] * 9 + [40] * 2 + [100], [9, 3]),
        ([5] * 5 + [40] * 6 + [100], [11, 1]),
        ([5] * 8 + [40] * 20 + [100] * 2, [8, 20, 2]),
    ],
)
def test_a_long_prompt_does_not_lengthen_the_cache_of_many_short_ones(lengths, expected):
    found = groups(lengths[::-1], 8, 128)
    assert [len(group) for group in found] == expected
    assert [lengths[::-1][i] for group in found for i in group] == sorted(lengths)


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
    assert generate(decoder, params, None, prompts, Sampling(max_new_tokens=12)) == expected
    assert generate(decoder, params, None, prompts, Sampling(max_new_tokens=12), batch_size=1) == expected


MESHES = [{"fsdp": 8}, {"replica": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "tensor": 4}]
DRAWN = Sampling(temperature=0.7, top_k=40, top_p=0.95, repetition_penalty=1.1, max_new_tokens=6, stop_ids=(9,))


@pytest.mark.parametrize("sizes", MESHES)
def test_a_mesh_generates_the_same(tiny, sizes):
    """And every row for itself does, whatever it is decoded with."""
    decoder, params = tiny
    mesh = make_mesh(MeshConfig(**sizes))
    sharded = jax.device_put(params, tree_shardings(decoder.logical_axes(), params, mesh))
    prompts = [[5 + i, *range(1, 1 + i)] for i in range(11)]
    expected = generate(decoder, params, None, prompts, DRAWN, batch_size=1)
    assert generate(decoder, sharded, None, prompts, DRAWN, mesh, batch_size=8) == expected
    assert len({tuple(new) for new in expected}) > 5


@pytest.mark.parametrize("sizes", [None, *MESHES[:2]])
def test_nothing_is_compiled_after_the_first_call(tiny, sizes):
    decoder, params = Decoder(tiny[0].arch), tiny[1]  # one of its own, which shares no program
    mesh = make_mesh(MeshConfig(**(sizes or {"fsdp": 1})), None if sizes else jax.devices()[:1])
    params = jax.device_put(params, tree_shardings(decoder.logical_axes(), params, mesh))
    sampler = Sampler(decoder, dataclasses.replace(DRAWN, max_new_tokens=7), mesh, batch_size=8)
    before = _admit._cache_size(), _advance._cache_size()
    sampler.generate(params, [[5 + i, *range(1, 1 + i)] for i in range(11)])
    compiled = []
    note = lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        for count, limit in ((11, 7), (20, 5), (9, 8)):
            sampler.sampling = dataclasses.replace(DRAWN, max_new_tokens=limit, seed=count)
            sampler.generate(params, [[5 + i, *range(1, 1 + i)] for i in range(count)])
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert compiled == []
    assert (_admit._cache_size() - before[0], _advance._cache_size() - before[1]) == (1, 1)


def test_the_cache_is_updated_in_place(tiny):
    """Both programs take the slots' memory for their result."""
    decoder, params = tiny
    run = _Run(Sampler(decoder, Sampling(max_new_tokens=8)), params, None, 4, [10])
    for _ in range(2):
        cache = run.slots.cache["stacks"]["0"]["0"]
        run.decode(deque([(0, [5, 6], 0)]), [None])
        assert cache.k.is_deleted() and cache.v.is_deleted()
    arguments = (run.slots, *run.arrays, np.ones(4, bool), 4, 8)
    memory = _advance.lower(*arguments, reach=run.length, **run.call).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= run.slots.cache["stacks"]["0"]["0"].k.nbytes * 2


def scores(decoder, params, prompt, new, adapters=None):
    """The log-probabilities of the new tokens, from one pass over all."""
    ids = np.array([[*prompt, *new]], np.int32)
    places = np.arange(ids.shape[1])[None]
    hidden = decoder.forward(params, ids, places, np.ones_like(ids), adapters=adapters).hidden
    logps = jax.nn.log_softmax(decoder.head(decoder.head_params(params, adapters), hidden))[0]
    return np.asarray(logps)[np.arange(len(prompt) - 1, ids.shape[1] - 1), new]


def test_log_probabilities_are_the_models_own(tiny):
    decoder, params = tiny
    prompts = [[7], [3, 4, 5, 6]]
    for sampling in (Sampling(max_new_tokens=9), dataclasses.replace(DRAWN, max_new_tokens=9)):
        for prompt, one in zip(prompts, Sampler(decoder, sampling).generate(params, prompts)):
            assert len(one.logps) == len(one.tokens)
            np.testing.assert_allclose(one.logps, scores(decoder, params, prompt, one.tokens), atol=2e-4)


def test_a_step_reads_all_that_a_row_has(tiny):
    """Through four programs, each of which reads a quarter of the cache more than the one before."""
    decoder, params = Decoder(llama(max_position_embeddings=512)), tiny[1]
    before, prompts = _advance._cache_size(), [[7], list(range(3, 20))]
    sampler = Sampler(decoder, Sampling(temperature=1.0, max_new_tokens=256))
    for prompt, one in zip(prompts, sampler.generate(params, prompts)):
        assert len(one.tokens) == 256
        np.testing.assert_allclose(one.logps, scores(decoder, params, prompt, one.tokens), atol=1e-4)
    assert _advance._cache_size() - before == 4


@pytest.mark.parametrize(
    ("length", "needed", "expected"),
    [
        (40, 1, 40),
        (72, 5, 36),
        (72, 37, 72),
        (160, 17, 40),
        (160, 41, 80),
        (160, 160, 160),
        (130, 99, 99),
        (130, 100, 130),
    ],
)
def test_parts_hold_what_is_needed(length, needed, expected):
    assert parts_of(length, needed) == expected


@pytest.mark.parametrize("kind", ["lora", "loramoe", "spiel"])
def test_adapters_go_on_and_off(tiny, kind):
    decoder, params = tiny
    config = TrainConfig(adapter=AdapterConfig(kind))
    method = make_method(config, decoder.arch, 10)
    parts = method.split(params, jax.random.key(5))
    moved = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape) if x.dtype == jnp.float32 else x
    parts = parts._replace(params=jax.tree.map(moved, parts.params))
    base, adapters = method.compose(parts, method.probes(parts))
    sampler, prompts = Sampler(decoder, Sampling(max_new_tokens=6)), [[7, 8], [3, 4, 5]]
    off, on = (sampler.generate(base, prompts, adapters=a) for a in (None, adapters))
    assert [one.tokens for one in off] != [one.tokens for one in on]
    for prompt, one in zip(prompts, on):
        np.testing.assert_allclose(one.logps, scores(decoder, base, prompt, one.tokens, adapters), atol=2e-4)
    assert sampler.generate(params, prompts) == off


def test_a_processor_sees_the_models_logits(tiny):
    """One that forbids what the model would choose, with an array of its own; and the hidden state it is given."""
    decoder, params = tiny
    prompts, plain = [[7], [3, 4, 5]], Sampler(decoder, Sampling(max_new_tokens=1))
    first = [one.tokens[0] for one in plain.generate(params, prompts)]

    def forbid(which, step, logits):
        again = decoder.head(decoder.head_params(params), step.hidden)
        logits = jnp.where(jnp.abs(again - logits) < 1e-4, logits, -jnp.inf)  # of the hidden state
        return jnp.where(jnp.arange(logits.shape[1]) == which[step.ids][:, None], -jnp.inf, logits)

    processor = jax.tree_util.Partial(forbid, jnp.array(first))
    forbidden = Sampler(decoder, Sampling(max_new_tokens=5), processor=processor).generate(params, prompts)
    for prompt, one, banned in zip(prompts, forbidden, first):
        assert banned not in one.tokens
        np.testing.assert_allclose(one.logps, scores(decoder, params, prompt, one.tokens), atol=2e-4)
    last = lambda step, logits: 100.0 * jax.nn.one_hot((step.last + step.count + 1) % 64, 64)
    assert generate(decoder, params, None, [[5, 9]], Sampling(max_new_tokens=4), processor=last) == [[10, 12, 15, 19]]


def test_real_model_greedy_ids(real_data):
    folder = real_data / "models" / "stories260K"
    golden = np.load(folder / "golden.npz")
    decoder = Decoder(load_architecture(folder))
    params = load_params(folder, decoder, param_dtype=jnp.float32)
    prompt, expected = golden["prompt_ids"].tolist(), golden["greedy_ids"].tolist()
    new = generate(decoder, params, None, [prompt, prompt[:1]], Sampling(max_new_tokens=len(expected) - len(prompt)))
    assert prompt + new[0] == expected
