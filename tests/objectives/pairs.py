"""Packed preference pairs, and a model small enough for sums by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from reference import head

from jaxsft.objectives.objective import ModelOutput
from tests.tiny import make_batch, random_examples

VOCAB = 13


def pairs(count=5, seed=0):
    """Batch of pairs in ragged rows, with two references' log-probabilities of each example; and the examples."""
    examples = random_examples(2 * count, 7, VOCAB, seed)
    rows = [examples[:4], examples[4:6], examples[6:]]
    batch = make_batch(rows, 40, 6)
    filled, rng = batch.extras["example_index"] >= 0, np.random.default_rng(seed)
    batch.extras["member"] = np.where(filled, np.arange(6) % 2, -1).astype(np.int32)
    for k in range(2):
        batch.extras[f"reference_{k}"] = np.where(filled, rng.normal(-12, 4, filled.shape), 0)
    return batch, examples


def params_of(dtype=np.float32):
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=s).astype(dtype) for name, s in (("embed", (VOCAB, 5)), ("kernel", (5, VOCAB)))}


def bind(params):
    """A model without attention."""
    return lambda batch: ModelOutput(jnp.asarray(params["embed"])[batch.tokens], head, {"kernel": params["kernel"]})


def one_reference(batch):
    extras = {name: value for name, value in batch.extras.items() if name != "reference_1"}
    return dataclasses.replace(batch, extras=extras)
