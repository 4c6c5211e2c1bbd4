"""How the next token is chosen: pure functions of logits.

The order is that of `transformers`: the repetition penalty, then temperature, `top_k`, `top_p` and `min_p`, each on
what the one before has left.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxsft.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How continuations are drawn.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: only the k likeliest tokens are drawn; 0 is all.
      top_p: only the likeliest tokens that together reach this probability are drawn (Holtzman et al. 2019,
        arXiv:1904.09751), after `top_k`; 1 is all.
      min_p: only tokens of at least this share of the likeliest one's probability are drawn (Nguyen et al. 2024,
        arXiv:2407.01082), after `top_p`; 0 is all.
      repetition_penalty: the logits of tokens that the prompt or the continuation has are divided by it where positive,
        and multiplied where negative (Keskar et al. 2019, arXiv:1909.05858); 1 is none.
      max_new_tokens: where a continuation ends at the latest; the model's context ends it too.
      stop_ids: tokens that end a continuation.
      stop_strings: texts that end a continuation as soon as it has one of them.
      vocabulary: only ids below it are drawn, lest a row that pads the embedding is; 0 is all.
      seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 128
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    vocabulary: int = 0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy), or positive and finite.")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 0 (all tokens) or positive.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p is {self.min_p}; it must be 0 (all tokens) to 1 (the likeliest).")
        if not self.repetition_penalty > 0:
            raise UserError(f"repetition_penalty is {self.repetition_penalty}; it must be positive, and 1 is none.")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be positive.")
        if self.vocabulary < 0:
            raise UserError(f"vocabulary is {self.vocabulary}; it must be 0 (all ids) or positive.")
        if "" in self.stop_strings:
            raise UserError("stop_strings has an empty text, which would end everything at once; leave it out.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must be 0 to {2**32 - 1}.")

    def __str__(self) -> str:
        parts = [f"temperature {self.temperature:g}" if self.temperature else "the likeliest tokens"]
        parts += [f"top_k {self.top_k}"] * bool(self.temperature and self.top_k)
        parts += [f"top_p {self.top_p:g}"] * bool(self.temperature and self.top_p < 1)
        parts += [f"min_p {self.min_p:g}"] * bool(self.temperature and self.min_p)
        parts += [f"repetition penalty {self.repetition_penalty:g}"] * (self.repetition_penalty != 1)
        return ", ".join([*parts, f"at most {self.max_new_tokens}"])


def choose(logits: jax.Array, sampling: Sampling, keys: jax.Array, seen: jax.Array | None = None) -> jax.Array:
    """The next tokens.

    Args:
      logits: float32 [B, V].
      sampling: see `Sampling`.
      keys: one PRNG key a row [B].
      seen: bool [B, V], the tokens that `repetition_penalty` is for; read only where it is not 1.

    Returns:
      int32 [B].
    """
    if 0 < sampling.vocabulary < logits.shape[-1]:
        logits = jnp.where(jnp.arange(logits.shape[-1]) < sampling.vocabulary, logits, -jnp.inf)
    if sampling.repetition_penalty != 1:
        logits = penalize(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return likeliest(logits)
    logits = keep_likeliest(logits / sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def likeliest(logits: jax.Array) -> jax.Array:
    """int32 [B], the first of the largest of [B, V]; XLA's own argmax takes several times as long on CPUs."""
    vocab = logits.shape[-1]
    largest = logits == jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(largest, jnp.arange(vocab, dtype=jnp.int32), vocab - 1), axis=-1)


def penalize(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Logits [B, V] with those of the tokens in `seen`, bool [B, V], made less likely; see `Sampling`."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_likeliest(logits: jax.Array, top_k: int, top_p: float, min_p: float = 0.0) -> jax.Array:
    """Logits [B, V] with -inf at all tokens but those that `Sampling` lets be drawn; the likeliest always stays.

    Of tokens with the same logit all stay or none.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if top_p < 1:
        falling = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(falling, axis=-1)
        needed = jnp.cumsum(probabilities, axis=-1) - probabilities < top_p  # the mass before a token falls short
        smallest = jnp.min(jnp.where(needed, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if min_p > 0:
        smallest = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(min_p)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return logits
