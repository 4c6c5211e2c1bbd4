"""Continues prompts token by token, with a KV cache.

Prompts of one length bucket share a compiled prefill and a compiled decoding loop, which ends as soon as every prompt
has met a stop token. A prompt's continuation does not depend on what it is batched with: padding is never attended to,
and its random numbers come from its own key. With several processes all pass the same prompts and get all answers.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.errors import UserError
from jaxsft.sharding import constrain

SMALLEST_BUCKET = 32  # tokens of a prompt
SMALLEST_ROOM = 8  # tokens of a continuation


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: only the k likeliest tokens are drawn; 0 is all.
      top_p: only the likeliest tokens that together reach this probability are drawn (Holtzman et al. 2019,
        arXiv:1904.09751), after `top_k`; 1 is all.
      max_new_tokens: where a continuation ends at the latest; the model's context ends it too.
      stop_ids: tokens that end a continuation.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 128
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if self.temperature < 0:
            raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or positive.")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 0 (all tokens) or positive.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be positive.")

    def __str__(self) -> str:
        parts = [f"temperature {self.temperature:g}" if self.temperature else "the likeliest tokens"]
        parts += [f"top_k {self.top_k}"] * bool(self.temperature and self.top_k)
        parts += [f"top_p {self.top_p:g}"] * bool(self.temperature and self.top_p < 1)
        return ", ".join([*parts, f"at most {self.max_new_tokens}"])


def generate(
    decoder: Any,
    params: Any,
    adapters: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    key: jax.Array,
    *,
    batch_size: int = 32,
) -> list[list[int]]:
    """Continues each prompt.

    Args:
      decoder: a `jaxsft.models.decoder.Decoder`.
      params: its parameters.
      adapters: the adapter tree of `Decoder.forward`, or None.
      prompts: token ids, each at least one and fewer than the model's context.
      sampling: how tokens are chosen.
      key: of the whole call; prompt i draws from `fold_in(key, i)`.
      batch_size: prompts decoded at once; does not change what is generated.

    Returns:
      for each prompt its new tokens, the last of which is the stop token if one was met.

    Raises:
      UserError: for an empty prompt, or one that fills the model's context.
    """
    context = decoder.arch.max_positions
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise UserError(
                f"prompt {i} has {len(prompt)} tokens; it must have 1 to {context - 1}, below the model's context."
            )
    room = _bucket(sampling.max_new_tokens, SMALLEST_ROOM, context)
    static = dataclasses.replace(sampling, max_new_tokens=room)
    # On the host, so that several processes pass the same numbers to a program that spans them.
    key_data, key_impl = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
    answers: list[list[int]] = [[] for _ in prompts]

    def read(chosen: list[int], limits: np.ndarray, new: jax.Array) -> None:
        for i, limit, row in zip(chosen, limits.tolist(), np.asarray(new)):
            answers[i] = _cut(row[:limit].tolist(), sampling.stop_ids)

    pending = None
    for chosen in _batches([len(prompt) for prompt in prompts], batch_size, context):
        tokens, lengths = _pad([prompts[i] for i in chosen], rows=_bucket(len(chosen), 1, batch_size), context=context)
        indices = np.array(chosen + [0] * (len(tokens) - len(chosen)), np.int32)
        limits = (np.minimum(sampling.max_new_tokens, context - lengths) * (lengths > 0)).astype(np.int32)
        arrays = (tokens, np.maximum(lengths, 1), limits, key_data, indices)
        ready, pending = pending, (chosen, limits, _decode(decoder, params, adapters, *arrays, static, key_impl))
        if ready is not None:
            read(*ready)  # one batch late: the device never waits for the host
    if pending is not None:
        read(*pending)
    return answers


def choose(logits: jax.Array, sampling: Sampling, keys: jax.Array) -> jax.Array:
    """The next tokens, int32 [B], from logits float32 [B, V] and one key per row."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = keep_likeliest(logits / sampling.temperature, sampling.top_k, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def keep_likeliest(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Logits [B, V] with -inf at all tokens but those that `Sampling` lets be drawn; the likeliest always stays."""
    if 0 < top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if top_p < 1:
        falling = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(falling, axis=-1)
        needed = jnp.cumsum(probabilities, axis=-1) - probabilities < top_p  # the mass before a token falls short
        smallest = jnp.min(jnp.where(needed, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return logits


@functools.partial(jax.jit, static_argnames=("decoder", "sampling", "key_impl"))
def _decode(
    decoder: Any,
    params: Any,
    adapters: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    limits: jax.Array,
    key_data: jax.Array,
    indices: jax.Array,
    sampling: Sampling,
    key_impl: Any,
) -> jax.Array:
    """The new tokens int32 [B, max_new_tokens] (0 after the end) for right-padded prompts [B, T] of given indices."""
    rows, width = tokens.shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.wrap_key_data(key_data, impl=key_impl), indices)
    room = sampling.max_new_tokens
    head_params = decoder.head_params(params, adapters)
    stop_ids = jnp.array(sampling.stop_ids, jnp.int32)

    def draw(hidden: jax.Array, step: jax.Array) -> jax.Array:
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        return choose(decoder.head(head_params, hidden), sampling, step_keys)

    def ended(token: jax.Array, step: jax.Array) -> jax.Array:
        return jnp.isin(token, stop_ids) | (step + 1 >= limits)

    positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    real = (positions < lengths[:, None]).astype(jnp.int32)
    cache = decoder.init_cache(rows, width + room)
    output = decoder.forward(params, tokens, positions, real, adapters=adapters, cache=cache)
    last = jnp.take_along_axis(output.hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    first = draw(last, jnp.int32(0))
    new = jnp.zeros((rows, room), jnp.int32).at[:, 0].set(first)

    def unfinished(carry: tuple) -> jax.Array:
        step, _, done, _, _ = carry
        return (step < room) & ~done.all()

    def advance(carry: tuple) -> tuple:
        step, token, done, new, cache = carry
        output = decoder.forward(
            params,
            token[:, None],
            (lengths + step - 1)[:, None],  # a new token takes the place of padding, which nothing has attended to
            jnp.ones((rows, 1), jnp.int32),
            adapters=adapters,
            cache=cache,
        )
        token = jnp.where(done, 0, draw(output.hidden[:, 0], step))
        new = jax.lax.dynamic_update_slice(new, token[:, None], (0, step))
        return step + 1, token, done | ended(token, step), new, output.cache

    done = ended(first, jnp.int32(0))
    new = jax.lax.while_loop(unfinished, advance, (jnp.int32(1), first, done, new, output.cache))[3]
    return constrain(new, None, None)  # whole on every device, so that every process can read it


def _batches(lengths: list[int], batch_size: int, context: int) -> Iterator[list[int]]:
    """Indices of prompts to decode together, from short to long.

    A few long prompts would make the many of a batch as wide as they are. So a batch ends where the bucket changes,
    unless that would leave it less than half full: then one more program would cost more than the padding.
    """
    bucket = [_bucket(length, SMALLEST_BUCKET, context) for length in lengths]
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    while order:
        chosen = order[:batch_size]
        while len(shorter := [i for i in chosen if bucket[i] < bucket[chosen[-1]]]) > batch_size // 2:
            chosen = shorter
        order = order[len(chosen) :]
        yield chosen


def _pad(prompts: list[Sequence[int]], rows: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as int32 [rows, bucket], padded with 0 on the right, and their lengths; rows beyond them are empty."""
    lengths = np.array([len(p) for p in prompts] + [0] * (rows - len(prompts)), np.int32)
    tokens = np.zeros((rows, _bucket(int(lengths.max()), SMALLEST_BUCKET, context)), np.int32)
    for row, prompt in zip(tokens, prompts):
        row[: len(prompt)] = prompt
    return tokens, lengths


def _bucket(size: int, smallest: int, largest: int) -> int:
    """The power of two from `smallest` that holds `size`, at most `largest`: few shapes, few compilations."""
    return min(largest, max(smallest, 1 << (size - 1).bit_length()))


def _cut(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    """Tokens up to and with the first stop token."""
    ends = [i for i, token in enumerate(tokens) if token in stop_ids]
    return tokens[: ends[0] + 1] if ends else tokens
