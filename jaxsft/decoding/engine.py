"""Batched generation: prompts enter slots, a compiled loop decodes all slots, those that are done are filled again.

One program reads prompts, compiled for each bucket of their lengths. Another decodes all slots, compiled for each
quarter of the cache that a step can read; it returns as soon as enough slots are free for the next prompts, with
none waiting: all of them. What a prompt is continued with depends on the seed and its id: its random numbers come from
its own key, and padding is never attended to. Other rows, the number of slots and the mesh change only the order in
which floating-point numbers are summed.

With several processes all pass the same prompts and get all answers.
"""

import contextlib
import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxsft.decoding import slots as state
from jaxsft.decoding.sampling import Sampling, choose
from jaxsft.decoding.slots import Arrivals, Slots
from jaxsft.errors import UserError
from jaxsft.sharding import constrain, data_shards

SMALLEST_BUCKET = 32  # tokens of a prompt
SMALLEST_ROOM = 8  # tokens of a continuation
PARTS, SMALLEST_PART = 4, 32  # of the cache, of which a step reads as many as it needs; slots of a part
PREFILLS = 4  # a later prefill has a quarter of the slots, so that a few free ones need not wait for all
LOOK = 16  # tokens between two looks for stop strings

Processor = Callable[["Step", jax.Array], jax.Array]


class Step(NamedTuple):
    """What a logits processor knows of the rows that it is called with.

    Attributes:
      hidden: [B, embed] after the final norm, in the compute dtype: what the logits are a function of.
      ids: uint32 [B], of the prompts.
      count: int32 [B], new tokens so far.
      last: int32 [B], the token before the one to choose.
    """

    hidden: jax.Array
    ids: jax.Array
    count: jax.Array
    last: jax.Array


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A continuation.

    Attributes:
      tokens: the new ones, the stop token or those of the stop string included.
      logps: their natural log-probabilities under the model, before any processor, penalty, temperature or cut.
      stopped_by: "token", "string", "length" (`max_new_tokens`) or "context".
    """

    tokens: list[int]
    logps: list[float]
    stopped_by: str


class Sampler:
    """Continues prompts by one model and one way to draw.

    Args:
      decoder: a `jaxsft.models.decoder.Decoder`.
      sampling: how tokens are chosen, and what ends a continuation.
      mesh: of the parameters; None is whatever mesh the caller has set.
      batch_size: prompts decoded at once, rounded up to a multiple of the mesh's data-parallel devices.
      processor: `fn(step, logits float32 [B, V]) -> logits`, traced into the programs; it sees the model's logits, and
        all else acts on its result. With arrays of its own it is a pytree that can be called (such as a
        `jax.tree_util.Partial` of a function and arrays), and they are passed to the programs.
      text: `fn(prompt ids, new ids) -> str`, the text that is new; needed for `sampling.stop_strings`.

    Raises:
      UserError: for stop strings without `text`.
    """

    def __init__(
        self,
        decoder: Any,
        sampling: Sampling,
        mesh: Mesh | None = None,
        *,
        batch_size: int = 32,
        processor: Processor | None = None,
        text: Callable[[Sequence[int], Sequence[int]], str] | None = None,
    ):
        if sampling.stop_strings and text is None:
            raise UserError("stop_strings are texts, but the sampler has no tokenizer; give `text`.")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be positive.")
        self.decoder, self.sampling, self.mesh, self.batch_size, self.text = decoder, sampling, mesh, batch_size, text
        is_function = jax.tree_util.all_leaves([processor])
        self.processor = jax.tree_util.Partial(processor) if is_function else processor

    def generate(
        self, params: Any, prompts: Sequence[Sequence[int]], ids: Sequence[int] | None = None, *, adapters: Any = None
    ) -> list[Sampled]:
        """Continues each prompt.

        Args:
          params: the decoder's parameters.
          prompts: token ids, each at least one and fewer than the model's context.
          ids: integers from 0 to 2**32 - 1; with the seed they decide what is drawn. None counts from 0.
          adapters: the adapter tree of `Decoder.forward`; None is the base alone.

        Raises:
          UserError: for an empty prompt, one that fills the model's context, or ids that are not one a prompt.
        """
        ids = list(range(len(prompts)) if ids is None else ids)
        if len(ids) != len(prompts) or not all(0 <= i < 2**32 for i in ids):
            raise UserError(
                f"there are {len(prompts)} prompts and {len(ids)} ids; give one id, 0 to 2**32 - 1, to each."
            )
        context = self.decoder.arch.max_positions
        for i, prompt in enumerate(prompts):
            if not 0 < len(prompt) < context:
                raise UserError(
                    f"prompt {i} has {len(prompt)} tokens; it must have 1 to {context - 1}, below the model's context."
                )
        answers: list[Sampled | None] = [None] * len(prompts)
        rows = bucket(len(prompts), 1, self.batch_size)
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            for chosen in groups([len(prompt) for prompt in prompts], rows, context):
                run = _Run(self, params, adapters, rows, [len(prompts[i]) for i in chosen])
                run.decode(deque((i, prompts[i], ids[i]) for i in chosen), answers)
        return answers


class _Run:
    """One set of slots and the prompts that pass through them."""

    def __init__(self, sampler: Sampler, params: Any, adapters: Any, rows: int, lengths: Sequence[int]):
        decoder, sampling, self.sampler = sampler.decoder, sampler.sampling, sampler
        shards = 1 if sampler.mesh is None else data_shards(sampler.mesh)
        whole = lambda n: -(-n // shards) * shards
        self.rows, self.context = whole(rows), decoder.arch.max_positions
        at_once = rows if len(lengths) <= rows else -(-rows // PREFILLS)
        self.arriving = min(whole(at_once), self.rows)
        room = bucket(sampling.max_new_tokens, SMALLEST_ROOM, self.context)
        self.length = min(bucket(max(lengths), SMALLEST_BUCKET, self.context) + room, self.context)
        self.written = np.zeros(self.rows, int)  # tokens of each row so far
        # Two runs that differ in nothing else share their programs.
        static = dataclasses.replace(sampling, max_new_tokens=room, stop_strings=(), seed=0)
        # On the host, so that several processes pass the same numbers to a program that spans them.
        key = np.asarray(jax.random.key_data(jax.random.key(sampling.seed)))
        self.call = {"decoder": decoder, "sampling": static}
        self.arrays = params, adapters, sampler.processor, key
        vocab = decoder.arch.vocab_size if sampling.repetition_penalty != 1 else 0
        self.slots = _empty(decoder, self.rows, self.length, room, vocab)

    def decode(self, waiting: deque, answers: list[Sampled | None]) -> None:
        """Continues all of (place, prompt, id) in `waiting`, and puts the answers to their places."""
        inside: list[tuple | None] = [None] * self.rows
        look = LOOK if self.sampler.sampling.stop_strings else self.context
        while waiting or any(inside):
            free = [row for row, prompt in enumerate(inside) if prompt is None]
            while waiting and len(free) >= min(self.arriving, len(waiting)):
                self._admit([waiting.popleft() for _ in range(min(self.arriving, len(waiting)))], free, inside)
            occupied = np.array([prompt is not None for prompt in inside])
            wanted = min(self.arriving, len(waiting)) if waiting else self.rows
            reach = parts_of(self.length, int(self.written.max()))
            self.slots, report = _advance(self.slots, *self.arrays, occupied, wanted, look, reach=reach, **self.call)
            stopped, count, tokens, logps = (np.asarray(x) for x in report)
            for row, prompt in enumerate(inside):
                if prompt is None:
                    continue
                place, ids, _ = prompt
                new = tokens[row, : count[row]].tolist()
                self.written[row] = len(ids) + len(new)
                end = self._end_of_string(ids, new)
                if end is None and stopped[row] == state.RUNNING:
                    continue
                end, why = (len(new), self._why(stopped[row], ids)) if end is None else (end, "string")
                answers[place] = Sampled(new[:end], logps[row, :end].tolist(), why)
                inside[row], self.written[row] = None, 0

    def _admit(self, arriving: list[tuple], free: list[int], inside: list[tuple | None]) -> None:
        """Takes prompts into the first free slots."""
        count, limit = self.arriving, self.sampler.sampling.max_new_tokens
        width = bucket(max(len(prompt) for _, prompt, _ in arriving), SMALLEST_BUCKET, self.context)
        tokens, (lengths, ids, limits) = np.zeros((count, width), np.int32), np.ones((3, count), np.int64)
        at = np.full(count, self.rows, np.int32)
        for n, (place, prompt, name) in enumerate(arriving):
            tokens[n, : len(prompt)], lengths[n], at[n] = prompt, len(prompt), free.pop(0)
            ids[n], limits[n] = name, min(limit, self.context - len(prompt))
            inside[at[n]], self.written[at[n]] = (place, prompt, name), len(prompt) + 1
        arrivals = Arrivals(tokens, lengths.astype(np.int32), at, ids.astype(np.uint32), limits.astype(np.int32))
        self.slots = _admit(self.slots, *self.arrays, arrivals, **self.call)

    def _why(self, stopped: int, prompt: Sequence[int]) -> str:
        if stopped == state.TOKEN:
            return "token"
        return "length" if self.sampler.sampling.max_new_tokens <= self.context - len(prompt) else "context"

    def _end_of_string(self, prompt: Sequence[int], new: list[int]) -> int | None:
        """The number of new tokens whose text first has a stop string, or None."""
        strings = self.sampler.sampling.stop_strings
        has = lambda end: any(string in self.sampler.text(prompt, new[:end]) for string in strings)
        if not strings or not has(len(new)):
            return None
        return next(end for end in range(1, len(new) + 1) if has(end))


_empty = jax.jit(state.empty, static_argnums=(0, 1, 2, 3, 4))


@functools.partial(jax.jit, static_argnames=("decoder", "sampling"), donate_argnames="slots")
def _admit(
    slots: Slots,
    params: Any,
    adapters: Any,
    processor: Processor | None,
    key: jax.Array,
    arrivals: Arrivals,
    *,
    decoder: Any,
    sampling: Sampling,
) -> Slots:
    """Reads prompts into their slots and chooses the first token of each."""
    rows, width = arrivals.tokens.shape
    tokens = constrain(arrivals.tokens, "batch", None)
    positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    real = positions < arrivals.lengths[:, None]
    output = decoder.forward(
        params, tokens, positions, real.astype(jnp.int32), adapters=adapters, cache=decoder.init_cache(rows, width)
    )
    at = (arrivals.lengths - 1)[:, None]
    hidden = jnp.take_along_axis(output.hidden, at[..., None], axis=1)[:, 0]
    last = jnp.take_along_axis(tokens, at, axis=1)[:, 0]
    vocab = slots.seen.shape[1]
    marked = jnp.where(real, tokens, vocab)
    seen = jnp.zeros((rows, vocab), bool).at[jnp.arange(rows)[:, None], marked].set(True, mode="drop")
    step = Step(hidden, arrivals.ids, jnp.zeros(rows, jnp.int32), last)
    head = decoder.head_params(params, adapters)
    token, logp = _draw(step, seen, head, processor, key, decoder, sampling)
    slots = state.enter(slots, arrivals, output.cache, seen)
    spread = lambda x: jnp.zeros(len(slots.count), x.dtype).at[arrivals.slots].set(x, mode="drop")
    entered = spread(jnp.ones(rows, bool))
    return state.write(slots, entered, spread(token), spread(logp), sampling.stop_ids).pinned()


@functools.partial(jax.jit, static_argnames=("decoder", "sampling", "reach"), donate_argnames="slots")
def _advance(
    slots: Slots,
    params: Any,
    adapters: Any,
    processor: Processor | None,
    key: jax.Array,
    occupied: jax.Array,
    wanted: jax.Array,
    steps: jax.Array,
    *,
    decoder: Any,
    sampling: Sampling,
    reach: int,
) -> tuple[Slots, tuple[jax.Array, ...]]:
    """Decodes until `wanted` slots are free, for so many steps, or until a row has more tokens than a step reads.

    Slots that are not `occupied` are emptied first.

    Returns:
      the slots, and (stopped, count, tokens, logps), whole on every device, so that every process can read them.
    """
    head = decoder.head_params(params, adapters)
    slots = slots._replace(stopped=jnp.where(occupied, slots.stopped, state.EMPTY))

    def going(carry: tuple[jax.Array, Slots]) -> jax.Array:
        done, slots = carry
        running = slots.stopped == state.RUNNING
        within = jnp.all(~running | (slots.position < reach))
        return (done < steps) & (jnp.sum(~running) < wanted) & within

    def one(carry: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
        done, slots = carry
        running = slots.stopped == state.RUNNING
        output = decoder.forward(
            params,
            slots.token[:, None],
            slots.position[:, None],
            running.astype(jnp.int32)[:, None],
            adapters=adapters,
            cache=slots.cache,
            reach=reach,
        )
        step = Step(output.hidden[:, 0], slots.ids, slots.count, slots.token)
        token, logp = _draw(step, slots.seen, head, processor, key, decoder, sampling)
        slots = slots._replace(cache=output.cache)
        return done + 1, state.write(slots, running, token, logp, sampling.stop_ids)

    slots = jax.lax.while_loop(going, one, (jnp.int32(0), slots))[1].pinned()
    whole = lambda x: constrain(x, *(None,) * x.ndim)
    return slots, tuple(whole(x) for x in (slots.stopped, slots.count, slots.tokens, slots.logps))


def _draw(
    step: Step,
    seen: jax.Array,
    head: Any,
    processor: Processor | None,
    key: jax.Array,
    decoder: Any,
    sampling: Sampling,
) -> tuple[jax.Array, jax.Array]:
    """The next token of each row and its log-probability under the model."""
    own = decoder.head(head, step.hidden)
    logits = own if processor is None else processor(step, own)
    fold = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.wrap_key_data(key), step.ids)
    token = choose(logits, sampling, jax.vmap(jax.random.fold_in)(fold, step.count), seen)
    chosen = jnp.take_along_axis(own, token[:, None], axis=-1)[:, 0]
    return token, (chosen - jax.nn.logsumexp(own, axis=-1)).astype(jnp.float32)


def groups(lengths: Sequence[int], rows: int, context: int) -> list[list[int]]:
    """Indices of prompts that share slots, from short to long.

    A long prompt makes the cache of all rows as long as its own. So prompts of one length bucket are kept together, but
    where they are fewer than the rows: then the next bucket joins them.
    """
    found: list[list[int]] = []
    size = lambda i: bucket(lengths[i], SMALLEST_BUCKET, context)
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if found and (len(found[-1]) < rows or size(found[-1][-1]) == size(i)):
            found[-1].append(i)
        else:
            found.append([i])
    return found


def parts_of(length: int, needed: int) -> int:
    """As much of `length`, a few parts of the same size, as holds `needed`: few shapes again."""
    part = -(-length // max(1, min(PARTS, length // SMALLEST_PART)))
    return min(length, -(-needed // part) * part)


def bucket(size: int, smallest: int, largest: int) -> int:
    """The power of two from `smallest` that holds `size`, at most `largest`: few shapes, few compilations."""
    return min(largest, max(smallest, 1 << (size - 1).bit_length()))
