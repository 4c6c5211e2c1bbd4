"""A tiny decoder, ragged examples, and what full logits say of them."""

import jax
import numpy as np
import pytest

from jaxsft.models.decoder import Decoder
from tests.evaluation.layouts import sharpened
from tests.tiny import llama


@pytest.fixture(scope="session")
def decoder():
    return Decoder(llama())


@pytest.fixture(scope="session")
def params(decoder):
    return sharpened(decoder, 2)


@pytest.fixture(scope="session")
def examples():
    """(ids, weights) of 13 examples; weights[t] is that of predicting ids[t]; one of them has none."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(13):
        n = int(rng.integers(3, 24))
        weights = rng.choice([0.0, 0.5, 1.0, 2.0], n)
        weights[0] = 0
        weights[-1] = 1
        made.append((rng.integers(1, 64, n), weights * (i != 5)))
    return made


@pytest.fixture(scope="session")
def log_softmax(decoder):
    """(params, ids) -> float64 log-probabilities [n, V] after each token, from full logits."""

    @jax.jit
    def logits(params, row):
        ids = np.ones(row.shape, np.int32)
        hidden = decoder.forward(params, row, np.arange(row.shape[1])[None], ids).hidden
        return decoder.head(decoder.head_params(params, None), hidden)[0]

    def function(params, ids):
        row = np.zeros((1, 48), np.int32)  # causal: what follows the example changes nothing
        row[0, : len(ids)] = ids
        z = np.asarray(logits(params, row), np.float64)[: len(ids)]
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    return function
