"""The rows that are decoded at once, as one pytree on the device: slots that prompts enter and leave.

The cache is that of `Decoder.init_cache`: keys and values of all layers of a stack in one array, whose slot s of a row
holds the token at position s, whatever the layer's window or norms. A row that is taken over needs no clearing: its
old keys lie where the new segment ids are 0, and nothing attends there.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsft.models.block import Cache
from jaxsft.sharding import constrain

RUNNING, TOKEN, LIMIT, EMPTY = 0, 1, 2, 3  # why a slot decodes no further


class Slots(NamedTuple):
    """B rows in several stages of their continuation.

    Attributes:
      cache: of the decoder, with every token but the last of each row.
      ids: uint32 [B], of the prompts.
      token: int32 [B], the last token, not yet in the cache.
      position: int32 [B], its place in the row.
      count: int32 [B], of new tokens.
      limit: int32 [B], at which count the row ends.
      stopped: int32 [B], `RUNNING` or why not.
      tokens: int32 [B, room], the new ones; what lies behind `count` means nothing.
      logps: float32 [B, room], theirs.
      seen: bool [B, V], tokens of prompt and continuation; [B, 0] where nothing asks for them.
    """

    cache: Any
    ids: jax.Array
    token: jax.Array
    position: jax.Array
    count: jax.Array
    limit: jax.Array
    stopped: jax.Array
    tokens: jax.Array
    logps: jax.Array
    seen: jax.Array

    def pinned(self) -> "Slots":
        """With rows split over the data-parallel devices, so that one program's result suits the next."""
        split = lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1))
        stacks = _by_layer(Cache.pinned, self.cache["stacks"])
        cache = {"segment_ids": split(self.cache["segment_ids"]), "stacks": stacks}
        return Slots(cache, *(split(x) for x in self[1:]))


class Arrivals(NamedTuple):
    """Prompts that enter slots.

    Attributes:
      tokens: int32 [P, W], right-padded.
      lengths: int32 [P], at least 1.
      slots: int32 [P]; past the last slot for rows that are only there to fill the shape.
      ids: uint32 [P].
      limits: int32 [P], tokens that may be written.
    """

    tokens: Any
    lengths: Any
    slots: Any
    ids: Any
    limits: Any


def empty(decoder: Any, rows: int, length: int, room: int, vocab: int) -> Slots:
    """Empty slots with a cache of `length` tokens a row, and `room` for new ones."""
    ints = jnp.zeros(rows, jnp.int32)
    return Slots(
        cache=decoder.init_cache(rows, length),
        ids=jnp.zeros(rows, jnp.uint32),
        token=ints,
        position=ints,
        count=ints,
        limit=ints,
        stopped=jnp.full(rows, EMPTY, jnp.int32),
        tokens=jnp.zeros((rows, room), jnp.int32),
        logps=jnp.zeros((rows, room), jnp.float32),
        seen=jnp.zeros((rows, vocab), bool),
    ).pinned()


def enter(slots: Slots, arrivals: Arrivals, cache: Any, seen: jax.Array) -> Slots:
    """Puts prompts into their slots, with their cache of W tokens a row; nothing is chosen yet."""
    at, width = arrivals.slots, arrivals.tokens.shape[1]
    put = lambda old, new: old.at[at].set(jnp.asarray(new, old.dtype), mode="drop")
    marks = cache["segment_ids"]
    marks = jnp.pad(marks, ((0, 0), (0, slots.cache["segment_ids"].shape[1] - width)))
    return slots._replace(
        cache={
            "segment_ids": put(slots.cache["segment_ids"], marks),
            "stacks": _by_layer(lambda old, new: old.enter(at, new), slots.cache["stacks"], cache["stacks"]),
        },
        ids=put(slots.ids, arrivals.ids),
        position=put(slots.position, arrivals.lengths - 1),
        count=put(slots.count, 0),
        limit=put(slots.limit, arrivals.limits),
        stopped=put(slots.stopped, RUNNING),
        seen=put(slots.seen, seen),
    )


def write(slots: Slots, rows: jax.Array, token: jax.Array, logp: jax.Array, stop_ids: tuple[int, ...]) -> Slots:
    """Appends a new token to each of the rows, bool [B].

    Args:
      slots: before.
      rows: which slots have one.
      token, logp: [B].
      stop_ids: tokens that end a row.
    """
    # Comparisons rather than scatters: the partitioner splits them like any other operation on single elements.
    here = (jnp.arange(slots.tokens.shape[1]) == slots.count[:, None]) & rows[:, None]
    put = lambda old, new: jnp.where(here, new[:, None].astype(old.dtype), old)
    count = slots.count + rows
    stops = jnp.isin(token, jnp.array(stop_ids, jnp.int32))
    why = jnp.where(stops, TOKEN, jnp.where(count >= slots.limit, LIMIT, RUNNING))
    seen = slots.seen | ((jnp.arange(slots.seen.shape[1]) == token[:, None]) & rows[:, None])
    return slots._replace(
        token=jnp.where(rows, token, slots.token),
        position=slots.position + rows,
        count=count,
        stopped=jnp.where(rows, why, slots.stopped),
        tokens=put(slots.tokens, token),
        logps=put(slots.logps, logp),
        seen=seen,
    )


def _by_layer(function: Any, *caches: Any) -> Any:
    """Maps a function of `Cache`s over those of all stacks."""
    return jax.tree.map(function, *caches, is_leaf=lambda node: isinstance(node, Cache))
