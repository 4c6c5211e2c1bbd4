"""Tiny models and batches that tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.data.batch import Batch
from jaxsft.models.architecture import Architecture
from jaxsft.models.decoder import Decoder

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "initializer_range": 0.1,
}


def llama(**changes: object) -> Architecture:
    """A three-layer Llama of width 32."""
    return Architecture.from_hf(LLAMA | changes)


def random_examples(count: int, longest: int, vocab: int = 64, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, weights of each token as a target) of ragged lengths and ragged, real-valued weights."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        n = int(rng.integers(4, longest + 1))
        weights = rng.uniform(0.1, 2.0, n) * (rng.random(n) < rng.uniform(0.2, 1.0))
        weights[0], weights[-1] = 0, 1
        examples.append((rng.integers(1, vocab, n), weights.astype(np.float32)))
    return examples


def make_batch(
    rows: list[list[tuple[np.ndarray, np.ndarray]]], length: int, slots: int, order: list | None = None
) -> Batch:
    """Rows of examples as a batch; `example_index` is the place in `order`, or counts through the rows."""
    ints = {name: np.zeros((len(rows), length), np.int32) for name in ("tokens", "positions", "segment_ids", "targets")}
    weights = np.zeros((len(rows), length), np.float32)
    index, count = np.full((len(rows), slots), -1, np.int32), 0
    for r, row in enumerate(rows):
        at = 0
        for e, (tokens, weight) in enumerate(row):
            n = len(tokens)
            span = slice(at, at + n)
            ints["tokens"][r, span], ints["positions"][r, span], ints["segment_ids"][r, span] = tokens, range(n), e + 1
            ints["targets"][r, at : at + n - 1], weights[r, at : at + n - 1] = tokens[1:], weight[1:]
            index[r, e] = count if order is None else next(i for i, known in enumerate(order) if known is row[e])
            at, count = at + n, count + 1
        assert at <= length
    return Batch(
        **{k: v for k, v in ints.items()},
        example_ids=ints["segment_ids"],
        weights=weights,
        extras={"example_index": index},
    )


def packed_rows(examples: list, rows: int, length: int, group: int = 1) -> list[list]:
    """Groups of so many examples, each dealt as a whole to the row of fewest with room."""
    tokens = lambda examples: sum(len(t) for t, _ in examples)
    table: list[list] = [[] for _ in range(rows)]
    for i in range(0, len(examples), group):
        together = examples[i : i + group]
        room = [row for row in table if tokens(row) + tokens(together) <= length]
        min(room, key=len).extend(together)
    return table


def on_device(batch: Batch) -> Batch:
    """The batch as jax arrays."""
    return jax.tree.map(jnp.asarray, batch)


def logits(decoder: Decoder, tokens, params, adapters=None) -> jax.Array:
    """[B, T, V] of rows that are one example each, as wide as the decoder computes or the parameters are."""
    dtype = jnp.promote_types(params["norm"]["scale"].dtype, decoder.dtype)
    return _logits(decoder.arch, dtype, tokens, params, adapters)


def logits_of(model) -> np.ndarray:
    """[1, 40, V] of an open model, for words that every tiny vocabulary has."""
    return np.asarray(logits(model.decoder, np.arange(40)[None] % 64, model.params, model.adapters))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(arch, dtype, tokens, params, adapters):
    decoder = Decoder(arch, dtype=dtype, remat="none")
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = decoder.forward(params, tokens, positions, jnp.ones_like(positions), adapters=adapters).hidden
    return decoder.head(decoder.head_params(params, adapters), hidden)
