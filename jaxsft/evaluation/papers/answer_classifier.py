"""A small classifier of answer-like texts: logistic regression on hashed words, pairs of words and how a text begins.

The paper of the instruction following score fine-tunes BERT to 97 % accuracy; this needs no model and seconds on a CPU.
How far it is to be trusted is measured on held-out texts, and kept with it.
"""

import io
import itertools
import json
import re
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from jaxsft.errors import UserError
from jaxsft.evaluation.papers.instruction_cuts import Example
from jaxsft.files import read_npz, write_bytes

BUCKETS = 1 << 17
WORDS = 48  # at the beginning of a text that are read
STEPS, RATE, DECAY = 400, 0.05, 1e-4
PIECES = re.compile(r"\w+|[^\w\s]")


class AnswerClassifier:
    """Says which texts are answers; called with texts, as `jaxsft.evaluation.papers.instruction_following.ifs` does.

    Attributes:
      weights: float32 [BUCKETS].
      bias: float32.
      quality: `accuracy`, `precision` and `recall` of answers on held-out texts, and how many `texts` these were.
    """

    def __init__(self, weights: np.ndarray, bias: float, quality: dict[str, float]):
        self.weights, self.bias, self.quality = weights, bias, quality

    def __call__(self, texts: Sequence[str]) -> list[bool]:
        """Whether each is an answer."""
        return [bool(score > 0) for score in self.scores(texts)]

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [texts], the logit of being an answer."""
        sums = [self.weights[ids].sum() / np.sqrt(len(ids)) for ids in map(features, texts)]
        return np.array(sums, np.float64) + self.bias

    def save(self, path: epath.PathLike) -> None:
        """Writes a `.npz` file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, weights=self.weights, bias=self.bias, quality=json.dumps(self.quality))
        write_bytes(path, buffer.getvalue())


def load_classifier(path: epath.PathLike) -> AnswerClassifier:
    """Reads what `AnswerClassifier.save` wrote.

    Raises:
      UserError: if it is no such file.
    """
    try:
        held = read_npz(path)
        weights, bias, quality = held["weights"], float(held["bias"]), json.loads(str(held["quality"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no classifier of answers ({error}); make one by scripts/make_ifs.py.") from error
    if weights.shape != (BUCKETS,):
        raise UserError(f"{path} has {weights.shape} weights instead of {(BUCKETS,)}; make it again.")
    return AnswerClassifier(weights, bias, quality)


def train_classifier(examples: Sequence[Example], held_out: Sequence[Example]) -> AnswerClassifier:
    """Fits the classifier; the same examples give the same one.

    Args:
      examples: what it learns from.
      held_out: what its quality is measured on.

    Raises:
      UserError: if either has texts of one kind alone.
    """
    for name, texts in (("to learn from", examples), ("held out", held_out)):
        if len({example.answer for example in texts}) < 2:
            raise UserError(f"of the {len(texts)} texts {name} all are of one kind; give more conversations.")
    ids = [features(example.text) for example in examples]
    width = max(map(len, ids))
    table = np.zeros((len(ids), width), np.int32)
    share = np.zeros((len(ids), width), np.float32)
    for row, own in enumerate(ids):
        table[row, : len(own)], share[row, : len(own)] = own, 1 / np.sqrt(len(own))
    labels = np.array([example.answer for example in examples], np.float32)
    weights, bias = jax.device_get(_fit(table, share, labels))
    fitted = AnswerClassifier(np.asarray(weights), float(bias), {})
    said, true = np.array(fitted([e.text for e in held_out])), np.array([e.answer for e in held_out])
    hits = float((said & true).sum())
    fitted.quality = {
        "accuracy": float((said == true).mean()),
        "precision": hits / float(said.sum()) if said.any() else 0.0,
        "recall": hits / float(true.sum()),
        "texts": len(true),
    }
    return fitted


def features(text: str) -> np.ndarray:
    """int32, the buckets of a text: its words and pairs of words, the first three by place; how it and its first line
    begin and end, and how long they are."""
    text = text.strip()
    words = PIECES.findall(text.lower())[:WORDS]
    first = text[:1]
    kind = "A" if first.isupper() else "a" if first.islower() else "0" if first.isdigit() else first
    names = [f"w {word}" for word in words] + [f"p {a} {b}" for a, b in itertools.pairwise(words)]
    names += [f"{i} {word}" for i, word in enumerate(words[:3])]
    line = text.partition("\n")[0]
    names += [f"begins {kind}", f"ends {text[-1:]}", f"asks {'?' in text}", f"length {len(text.split()).bit_length()}"]
    names += [
        f"line {line == text} {line[-1:]}",
        f"line {line == text} {len(line.split()).bit_length()}",
        f"{kind} {line[-1:]}",
    ]
    return np.array([zlib.crc32(name.encode()) % BUCKETS for name in names], np.int32)


@jax.jit
def _fit(table: jax.Array, share: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights and bias of least mean cross-entropy, with a penalty of DECAY / 2 on the squared norm of the weights."""

    def loss(params: tuple[jax.Array, jax.Array]) -> jax.Array:
        weights, bias = params
        logits = (weights[table] * share).sum(axis=1) + bias
        entropy = optax.sigmoid_binary_cross_entropy(logits, labels).mean()
        return entropy + DECAY / 2 * jnp.square(weights).sum()

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))
    params = (jnp.zeros(BUCKETS), jnp.zeros(()))
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, length=STEPS)
    return params
