"""Log-likelihoods of continuations, each given its context: log p(c_1 .. c_n | context) = sum_t log p(c_t | ...).

Pairs that differ in nothing but the last token, as the letters of a multiple-choice question do, share one forward
pass; so do those of which one begins as the other does. Passes are packed into rows of few lengths, and the head is
applied where something is scored and nowhere else: what leaves the devices is one log-probability and one flag for each
scored token.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxsft.data.batch import Batch
from jaxsft.data.packing import plan
from jaxsft.evaluation.rows import SHORTEST_ROW
from jaxsft.evaluation.scoring import hidden_states, replicate, to_devices
from jaxsft.objectives.cross_entropy import token_log_probs
from jaxsft.sharding import process_share

FEWEST_TARGETS = 8  # of a row


class Pair(NamedTuple):
    """A context and its continuation, token ids, at least one of each."""

    context: Sequence[int]
    continuation: Sequence[int]


class LogLikelihood(NamedTuple):
    """Of a continuation.

    Attributes:
      log_prob: the sum over its tokens, in nats.
      greedy: whether each of its tokens is the likeliest (of equals the first).
    """

    log_prob: float
    greedy: bool


class Asked(NamedTuple):
    """A pair as a pass answers it: its index, the place that its last token follows, its tokens, and the last one."""

    index: int
    end: int
    count: int
    last: int


@dataclasses.dataclass
class Shared:
    """One forward pass and the pairs that it answers.

    Attributes:
      inputs: int32 [n], context and continuation without its last token, the right-most `longest` of them.
      pairs: those whose own inputs these begin with.
    """

    inputs: np.ndarray
    pairs: list[Asked]

    @functools.cached_property
    def wanted(self) -> dict[tuple[int, int], int]:
        """(place in `inputs`, token to score behind it) -> its number."""
        distinct = sorted({target for pair in self.pairs for target in self._of(pair)})
        return {target: number for number, target in enumerate(distinct)}

    @functools.cached_property
    def targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Places in `inputs`, and the token to score behind each."""
        places, tokens = zip(*self.wanted)
        return np.array(places), np.array(tokens)

    def read(self, log_probs: np.ndarray, hits: np.ndarray) -> Iterator[tuple[int, LogLikelihood]]:
        """(index, answer) of each pair, from what is known of the targets."""
        for pair in self.pairs:
            own = [self.wanted[target] for target in self._of(pair)]
            yield pair.index, LogLikelihood(float(log_probs[own].sum(dtype=np.float64)), bool(hits[own].all()))

    def _of(self, pair: Asked) -> list[tuple[int, int]]:
        """The targets of a pair."""
        before = [(place, int(self.inputs[place + 1])) for place in range(pair.end - pair.count + 1, pair.end)]
        return [*before, (pair.end, pair.last)]


def score(
    decoder: Any,
    params: Any,
    adapters: Any,
    pairs: Sequence[Pair],
    mesh: Mesh,
    *,
    batch_size: int = 16,
    longest: int = 0,
    chunk_size: int = 1024,
) -> Iterator[tuple[int, LogLikelihood]]:
    """The log-likelihood of every continuation, as they become known.

    Args:
      decoder: a `jaxsft.models.decoder.Decoder`.
      params: its parameters.
      adapters: the adapter tree of `Decoder.forward`, or None.
      pairs: what is asked. Where context and continuation are longer than `longest` + 1 tokens, the context loses its
        beginning; no continuation may be longer than `longest`.
      mesh: the mesh that the parameters live on. With several processes all ask the same, and all get all answers.
      batch_size: rows of a batch; rounded up so that they divide over the mesh.
      longest: inputs at most; 0 is the model's context.
      chunk_size: tokens per device whose logits exist at once.

    Yields:
      (index in `pairs`, answer), each once, those of long passes first.
    """
    longest = longest or decoder.arch.max_positions
    passes = share(pairs, longest)
    fn = functools.partial(_score, decoder, chunk_size, params, adapters)
    shares, count = process_share(mesh, jax.process_index())
    rows = -(-batch_size // count) * count
    own = np.arange(rows).reshape(count, -1)[list(shares)].ravel()
    with jax.set_mesh(mesh), tqdm(total=len(pairs), desc="scoring", unit="pair", leave=False, disable=None) as progress:
        pending: list[tuple[Any, Any]] = []
        for table, length, width in _batches(passes, longest, rows):
            batch = _assemble([table[r] if r < len(table) else [] for r in own], length, width)
            pending.append((table, fn(to_devices(batch, mesh))))
            if len(pending) > 1:  # read one batch late: the device never waits
                yield from _read(*pending.pop(0), progress)
        for ready in pending:
            yield from _read(*ready, progress)


def share(pairs: Sequence[Pair], longest: int) -> list[Shared]:
    """The forward passes that answer all pairs, the longest first.

    A pair whose inputs another's begin with is answered by the other's pass.
    """
    own: dict[bytes, list[Asked]] = {}
    for index, (context, continuation) in enumerate(pairs):
        if not len(context) or not 0 < len(continuation) <= longest:
            raise ValueError(f"pair {index} has {len(context)} and {len(continuation)} tokens; the limit is {longest}")
        inputs = np.array([*context, *continuation[:-1]], np.int32)[-longest:]
        asked = Asked(index, len(inputs) - 1, len(continuation), int(continuation[-1]))
        own.setdefault(inputs.tobytes(), []).append(asked)
    passes: dict[bytes, list[Asked]] = {}
    carrier = b""
    for inputs in sorted(own, reverse=True):  # what begins with some inputs stands right before them
        carrier = carrier if carrier.startswith(inputs) else inputs
        passes.setdefault(carrier, []).extend(own[inputs])
    found = [Shared(np.frombuffer(inputs, np.int32), sorted(asked)) for inputs, asked in passes.items()]
    return sorted(found, key=lambda one: (-len(one.inputs), one.pairs[0].index))


@functools.partial(jax.jit, static_argnames=("decoder", "chunk_size"))
def _score(decoder: Any, chunk_size: int, params: Any, adapters: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities float32 [B, Q] and hits bool [B, Q] of the targets that the batch's extras name."""
    places, targets = batch.extras["places"], batch.extras["targets"]
    batch = dataclasses.replace(batch, extras={})
    hidden = jnp.take_along_axis(hidden_states(decoder, params, adapters, batch), places[..., None], axis=1)
    scores = token_log_probs(
        decoder.head,
        decoder.head_params(params, adapters),
        hidden,
        targets,
        mask=targets >= 0,
        chunk_size=chunk_size,
    )
    return replicate((scores["log_prob"], scores["hit"]))


def _batches(passes: list[Shared], longest: int, rows: int) -> Iterator[tuple[list[list[Shared]], int, int]]:
    """Rows of passes, the length of a row, and the number of targets that the fullest has room for.

    Passes of similar length are packed together, so that a few long ones do not make the rows of all long; rows are of
    two lengths for each power of two, and all of one length have room for equally many targets.
    """
    by_length: dict[int, list[Shared]] = {}
    for one in passes:
        length = max(SHORTEST_ROW, 1 << (len(one.inputs) - 1).bit_length())
        if length > SHORTEST_ROW and len(one.inputs) <= length * 3 // 4:
            length = length * 3 // 4
        length = min(longest, length)
        by_length.setdefault(length, []).append(one)
    for length, members in by_length.items():
        laid = plan([len(one.inputs) for one in members], length, max_examples=length, shuffle=False)
        table = [[members[i] for i in laid.row(r)] for r in range(laid.num_rows)]
        most = max(sum(len(one.targets[0]) for one in row) for row in table)
        width = max(FEWEST_TARGETS, 1 << (most - 1).bit_length())
        for begin in range(0, len(table), rows):
            yield table[begin : begin + rows], length, width


def _assemble(table: list[list[Shared]], length: int, width: int) -> Batch:
    """Rows as arrays: the extras `places` and `targets`, int32 [B, width], say what is scored; -1 is no target."""
    tokens, positions, segments = np.zeros((3, len(table), length), np.int32)
    places, targets = np.zeros((len(table), width), np.int32), np.full((len(table), width), -1, np.int32)
    for r, row in enumerate(table):
        at = filled = 0
        for unit, one in enumerate(row, 1):
            here, n = one.targets, len(one.inputs)
            tokens[r, at : at + n], positions[r, at : at + n], segments[r, at : at + n] = one.inputs, range(n), unit
            span = slice(filled, filled + len(here[0]))
            places[r, span], targets[r, span] = here[0] + at, here[1]
            at, filled = at + n, span.stop
    extras = {"places": places, "targets": targets}
    zeros = np.zeros_like(tokens)
    return Batch(tokens, positions, segments, segments, zeros, zeros.astype(np.float32), extras)


def _read(
    table: list[list[Shared]], scores: tuple[jax.Array, jax.Array], progress: tqdm
) -> Iterator[tuple[int, LogLikelihood]]:
    log_probs, hits = jax.device_get(scores)
    for row, row_log_probs, row_hits in zip(table, log_probs, hits):
        at = 0
        for one in row:
            span = slice(at, at + len(one.targets[0]))
            yield from one.read(row_log_probs[span], row_hits[span])
            at = span.stop
            progress.update(len(one.pairs))
