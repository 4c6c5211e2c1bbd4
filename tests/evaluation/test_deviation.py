"""Deviation, log-ratio and KL against full logits in float64, and their closed forms."""

import jax
import numpy as np
import pytest

from jaxsft.config import MeshConfig
from jaxsft.evaluation.likelihood.deviation import make_deviation, summarize
from jaxsft.evaluation.scoring import example_sums
from jaxsft.sharding import make_mesh
from tests.evaluation.layouts import lay_out, sharpened


@pytest.fixture(scope="module")
def moved(decoder, params):
    other = sharpened(decoder, 3)
    return jax.tree.map(lambda p, q: p + 0.1 * q, params, other)


def measure(decoder, model, reference, batches):
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    fn = make_deviation(decoder, decoder, chunk_size=16)
    return summarize(example_sums(lambda batch: fn((model, None), (reference, None), batch), batches, mesh))


def test_against_full_logits(decoder, params, moved, examples, log_softmax):
    means, ratio, kl, weight = [], 0.0, 0.0, 0.0
    for ids, w in examples:
        p, q = (log_softmax(m, ids)[:-1] for m in (moved, params))
        at = np.arange(len(ids) - 1)
        own = (w[1:] * (p - q)[at, ids[1:]]).sum()
        means += [own / w.sum()] if w.any() else []
        ratio += own
        kl += (w[1:] * (np.exp(q) * (q - p)).sum(-1)).sum()
        weight += w.sum()
    expected = {"deviation": np.mean(means), "log_ratio_per_token": ratio / weight, "kl_per_token": kl / weight}
    assert expected["kl_per_token"] > 0.01
    for batches in (lay_out(examples, 2), lay_out(examples, 5, packing=False)):
        result = measure(decoder, moved, params, batches)
        assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        assert result["examples"] == 12


def test_the_model_itself_has_not_moved(decoder, params, examples):
    result = measure(decoder, params, params, lay_out(examples, 2))
    assert [result[n] for n in ("deviation", "log_ratio_per_token", "kl_per_token")] == [0, 0, 0]


def test_deviation_is_the_mean_over_examples():
    """Log-ratios 1.5 over 3 tokens and -0.4 over 2: (0.5 - 0.2) / 2 = 0.15; over tokens 1.1 / 5 = 0.22."""
    sums = {"log_ratio_sum": [1.5, -0.4, 0], "kl_sum": [0.6, 0.4, 0], "weight_sum": [3, 2, 0], "tokens": [3, 2, 0]}
    result = summarize({name: np.array(values, np.float64) for name, values in sums.items()})
    assert result == pytest.approx(
        {"deviation": 0.15, "log_ratio_per_token": 0.22, "kl_per_token": 0.2, "tokens": 5, "examples": 2}
    )
    assert np.isnan(summarize({})["deviation"])
