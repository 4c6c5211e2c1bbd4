"""The NLL against full logits in float64, and its independence of batching, packing and devices."""

import jax
import numpy as np
import pytest

from jaxsft.config import MeshConfig
from jaxsft.evaluation.likelihood.perplexity import evaluate, make_nll
from jaxsft.evaluation.scoring import example_sums
from jaxsft.sharding import make_mesh, tree_shardings
from tests.evaluation.layouts import lay_out


def on(decoder, params, mesh):
    return jax.device_put(params, tree_shardings(decoder.logical_axes(), params, mesh))


@pytest.fixture(scope="module")
def expected(params, examples, log_softmax):
    nll = weight = hits = tokens = 0
    for ids, w in examples:
        log_probs = log_softmax(params, ids)[:-1]
        at = np.arange(len(ids) - 1)
        nll -= (w[1:] * log_probs[at, ids[1:]]).sum()
        weight += w.sum()
        tokens += (w != 0).sum()
        hits += ((log_probs.argmax(-1) == ids[1:]) & (w[1:] != 0)).sum()
    return {"nll_per_token": nll / weight, "mean_token_accuracy": hits / tokens, "tokens": tokens, "examples": 12}


@pytest.mark.parametrize(
    ("mesh", "rows", "packing"),
    [
        (MeshConfig(fsdp=1), 4, True),
        (MeshConfig(fsdp=1), 3, False),
        (MeshConfig(fsdp=8), 8, True),
        (MeshConfig(replica=2, fsdp=2, tensor=2), 8, False),
    ],
)
def test_nll_does_not_depend_on_the_layout(decoder, params, examples, expected, mesh, rows, packing):
    devices = jax.devices()[: mesh.replica * mesh.fsdp * mesh.tensor]
    mesh = make_mesh(mesh, devices)
    batches = lay_out(examples, rows, packing=packing)
    result = evaluate(make_nll(decoder, chunk_size=16), on(decoder, params, mesh), None, batches, mesh)
    assert result["tokens"] == expected["tokens"]
    assert result["examples"] == expected["examples"]
    assert result["nll_per_token"] == pytest.approx(expected["nll_per_token"], rel=2e-6)
    assert result["perplexity"] == pytest.approx(np.exp(expected["nll_per_token"]), rel=1e-5)
    assert result["mean_token_accuracy"] == expected["mean_token_accuracy"]


def test_sums_are_those_of_each_example(decoder, params, examples, log_softmax):
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    fn = make_nll(decoder)
    sums = example_sums(lambda batch: fn(params, None, batch), lay_out(examples, 2), mesh)
    assert sums["example_index"].tolist() == list(range(13))
    for i, (ids, w) in enumerate(examples):
        log_probs = log_softmax(params, ids)[np.arange(len(ids) - 1), ids[1:]]
        assert sums["nll_sum"][i] == pytest.approx(-(w[1:] * log_probs).sum(), rel=1e-5, abs=1e-6)
        assert sums["weight_sum"][i] == w.sum()


def test_nothing_supervised_is_nan(decoder, params, examples):
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    result = evaluate(make_nll(decoder), params, None, lay_out([examples[5]], 1), mesh)
    assert np.isnan(result["nll_per_token"])
    assert (result["tokens"], result["examples"]) == (0, 0)
    assert evaluate(make_nll(decoder), params, None, [], mesh)["tokens"] == 0
