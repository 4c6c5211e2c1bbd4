"""Reference trustable decoding (2024, arXiv:2409.20181): examples with similar hidden states vote for the next token.

A store holds the hidden state after the final norm at the end of each example's prompt, and the token that is right
there. While decoding, the K nearest states vote with weights softmax(-d / T), and the blend lambda * votes +
(1 - lambda) * model is drawn from. Nothing is trained. `Neighbours` is a processor of `jaxsft.decoding.engine.Sampler`:

    store = Neighbours(*collect(decoder, params, prompts, next_tokens), neighbours=32, weight=0.5, temperature=80.0)
    Sampler(decoder, sampling, mesh, processor=store)

The paper speaks of the Euclidean distance; the authors' code has the squared one, which is the default here, and no
blend (weight 1). T is as large as distances are: `typical_distance` of some held-out states is a beginning.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.decoding.engine import SMALLEST_BUCKET, Step, bucket
from jaxsft.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Neighbours:
    """A store of states and the processor that asks it.

    Attributes:
      keys: float [N, embed], hidden states after the final norm.
      values: int32 [N], the token that follows each.
      neighbours: K, those that vote, at most N.
      weight: lambda, the votes' share of the blend, 0 (the model alone) to 1 (the votes alone).
      temperature: T, in units of the distance.
      heads: states are cut into so many equal parts, each with votes of its own, which are averaged. A part's distance
        counts that many times, so that T is in units of the whole state's, as in the authors' code.
      squared: whether the distance is the squared Euclidean one.
      chunk: keys compared at once, which bounds the memory at B * heads * chunk numbers; it decides nothing else.
    """

    keys: jax.Array
    values: jax.Array
    neighbours: int = dataclasses.field(default=32, metadata={"static": True})
    weight: float = dataclasses.field(default=0.5, metadata={"static": True})
    temperature: float = dataclasses.field(default=1.0, metadata={"static": True})
    heads: int = dataclasses.field(default=1, metadata={"static": True})
    squared: bool = dataclasses.field(default=True, metadata={"static": True})
    chunk: int = dataclasses.field(default=65536, metadata={"static": True})

    def __post_init__(self):
        if not 0 <= self.weight <= 1:
            raise UserError(f"weight is {self.weight}; it must be 0 (the model alone) to 1 (its neighbours alone).")
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature}; it must be positive, and about as large as distances.")
        if self.neighbours < 1 or self.heads < 1:
            raise UserError(f"neighbours is {self.neighbours} and heads {self.heads}; both must be positive.")

    def __call__(self, step: Step, logits: jax.Array) -> jax.Array:
        """The logarithm of the blend, float32 [B, V]; see `jaxsft.decoding.engine.Sampler`."""
        own = jax.nn.log_softmax(logits)
        votes = jnp.log(self.votes(step.hidden, logits.shape[-1]))
        with np.errstate(divide="ignore"):  # of weight 0 or 1 one side is nothing
            ours, theirs = np.log(np.float32(self.weight)), np.log(np.float32(1 - self.weight))
        return jnp.logaddexp(ours + votes, theirs + own)

    def votes(self, hidden: jax.Array, vocab: int) -> jax.Array:
        """The distribution of the votes, float32 [B, V], of hidden states [B, embed]."""
        distances, indices = nearest(self.keys, hidden, self.neighbours, self.heads, self.chunk)
        distances = distances if self.squared else jnp.sqrt(distances)
        shares = jax.nn.softmax(-self.heads * distances / self.temperature, axis=-1) / self.heads
        rows = jnp.arange(len(hidden))[:, None, None]
        return jnp.zeros((len(hidden), vocab), jnp.float32).at[rows, self.values[indices]].add(shares)


def nearest(
    keys: jax.Array, hidden: jax.Array, count: int, heads: int = 1, chunk: int = 65536
) -> tuple[jax.Array, jax.Array]:
    """Squared distances of the nearest keys, and their indices, each [B, heads, count], nearest first.

    Args:
      keys: [N, embed].
      hidden: [B, embed].
      count: at most N.
      heads, chunk: see `Neighbours`.
    """
    split = lambda x: x.astype(jnp.float32).reshape(len(x), heads, -1)
    keys, hidden = split(keys), split(hidden)
    best = None
    for start in range(0, len(keys), chunk):
        part = keys[start : start + chunk]
        # Of one centre, so that little is lost where |k|^2 - 2 k.h + |h|^2 nearly cancels.
        centre = jnp.mean(part, axis=0)
        near, asked = part - centre, hidden - centre
        products = jnp.einsum("bhd,nhd->bhn", asked, near, precision="highest")
        distances = jnp.sum(jnp.square(near), -1).T - 2 * products + jnp.sum(jnp.square(asked), -1, keepdims=True)
        indices = jnp.broadcast_to(start + jnp.arange(len(part)), distances.shape)
        if best is not None:
            distances, indices = (jnp.concatenate(pair, -1) for pair in zip(best, (distances, indices)))
        taken = jax.lax.top_k(-distances, min(count, distances.shape[-1]))
        best = jnp.maximum(-taken[0], 0), jnp.take_along_axis(indices, taken[1], axis=-1)
    return best


def typical_distance(keys: jax.Array, held_out: jax.Array, count: int, heads: int = 1) -> float:
    """The median squared distance of the `count` nearest keys over held-out states [M, embed], that of a part taken
    `heads` times: a temperature."""
    return heads * float(jnp.median(nearest(keys, held_out, count, heads)[0]))


def collect(
    decoder: Any,
    params: Any,
    prompts: Sequence[Sequence[int]],
    next_tokens: Sequence[int],
    adapters: Any = None,
    batch_size: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """Keys float32 [N, embed] and values int32 [N] of a store.

    Args:
      decoder, params, adapters: the model.
      prompts: token ids, of whose last one the state is kept.
      next_tokens: what follows each.
      batch_size: prompts read at once.

    Raises:
      UserError: where a prompt is empty, or fills the model's context, or has no next token.
    """
    context = decoder.arch.max_positions
    if len(prompts) != len(next_tokens) or not all(0 < len(prompt) <= context for prompt in prompts):
        raise UserError(
            f"{len(prompts)} prompts with {len(next_tokens)} next tokens make no store: give one token to each prompt, "
            f"and prompts of 1 to {context} tokens."
        )
    keys = np.zeros((len(prompts), decoder.arch.embed_dim), np.float32)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        tokens = np.zeros((batch_size, bucket(len(prompts[chosen[-1]]), SMALLEST_BUCKET, context)), np.int32)
        lengths = np.ones(batch_size, np.int32)
        for row, i in enumerate(chosen):
            lengths[row] = len(prompts[i])
            tokens[row, : lengths[row]] = prompts[i]
        keys[chosen] = np.asarray(_last_states(params, adapters, tokens, lengths, decoder=decoder))[: len(chosen)]
    return keys, np.asarray(next_tokens, np.int32)


@functools.partial(jax.jit, static_argnames="decoder")
def _last_states(params: Any, adapters: Any, tokens: jax.Array, lengths: jax.Array, *, decoder: Any) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    real = (positions < lengths[:, None]).astype(jnp.int32)
    hidden = decoder.forward(params, tokens, positions, real, adapters=adapters).hidden
    return jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0].astype(jnp.float32)
