import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import head

from jaxsft.config import ObjectiveConfig
from jaxsft.data.batch import Batch
from jaxsft.errors import UserError
from jaxsft.objectives.objective import ModelOutput
from jaxsft.objectives.registry import OBJECTIVES, make_objective
from jaxsft.objectives.sft import SFT
from jaxsft.objectives.terms import Term, total

VOCAB, LENGTH, SLOTS = 13, 18, 3


def make_examples(count=8, seed=0):
    """Examples of 2 to 6 tokens: (tokens, targets, weights), with real weights, some zero, ragged on purpose."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        n = int(rng.integers(2, 7))
        weights = rng.uniform(0.2, 2, n).astype(np.float32) * (rng.uniform(size=n) < (0.2 if i % 2 else 0.9))
        weights[-1] = 0 if i == 3 else 1  # one example is supervised nowhere
        examples.append((rng.integers(1, VOCAB, n), rng.integers(1, VOCAB, n), weights if i != 3 else 0 * weights))
    return examples


def pack(rows):
    """A batch of rows, each a list of examples."""
    fields = {
        name: np.zeros((len(rows), LENGTH), np.int32) for name in ("tokens", "positions", "example_ids", "targets")
    }
    weights = np.zeros((len(rows), LENGTH), np.float32)
    index = np.full((len(rows), SLOTS), -1, np.int32)
    for r, row in enumerate(rows):
        start = 0
        for e, (tokens, targets, weight) in enumerate(row):
            at = slice(start, start + len(tokens))
            fields["tokens"][r, at], fields["targets"][r, at], weights[r, at] = tokens, targets, weight
            fields["positions"][r, at], fields["example_ids"][r, at] = np.arange(len(tokens)), e + 1
            index[r, e], start = e, at.stop
    return Batch(segment_ids=fields["example_ids"], weights=weights, extras={"example_index": index}, **fields)


def bind(params):
    """A model without attention, so that a token's loss does not depend on where it stands."""
    return lambda batch: ModelOutput(jnp.asarray(params["embed"])[batch.tokens], head, {"kernel": params["kernel"]})


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=s).astype(np.float32) for name, s in (("embed", (VOCAB, 5)), ("kernel", (5, VOCAB)))}


def loss_and_sums(objective, batch, params, parts=1):
    """Loss, gradient and sums, over micro-batches of consecutive rows."""

    def of(params, micro, denominators):
        terms, sums = objective(bind(params), micro, denominators)
        return total(terms), sums

    @jax.jit
    def add_up(params, batch):
        denominators = objective.denominators(batch)
        micros = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        step = lambda micro: jax.value_and_grad(of, has_aux=True)(params, micro, denominators)
        return jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(step, micros))

    return add_up(params, batch)


def token_losses(params, example):
    tokens, targets, _ = example
    z = logits_of(params, tokens)
    return np.log(np.exp(z).sum(-1)) - z[np.arange(len(targets)), targets]


def logits_of(params, tokens):
    """In NumPy, all at once."""
    return 5 * np.tanh(params["embed"][tokens] @ params["kernel"] / 5)


def test_reductions_by_hand(params):
    examples = make_examples()
    batch = pack([examples[:2], examples[2:4], examples[4:6], examples[6:]])
    sums = [(float(w @ token_losses(params, e)), float(w.sum())) for e in examples for w in [e[2]]]
    token_mean = sum(s for s, _ in sums) / sum(w for _, w in sums)
    example_mean = np.mean([s / w for s, w in sums if w > 0])
    (loss, metric_sums), _ = loss_and_sums(SFT("token_mean", chunk_size=4), batch, params)
    np.testing.assert_allclose(loss, token_mean, rtol=1e-5)
    (loss, same_sums), _ = loss_and_sums(SFT("example_mean", chunk_size=4), batch, params)
    np.testing.assert_allclose(loss, example_mean, rtol=1e-5)
    assert abs(token_mean - example_mean) > 0.01  # the two can be told apart
    for sums in metric_sums, same_sums:  # metrics are those of tokens under both
        metrics = SFT().metrics(sums)
        np.testing.assert_allclose(metrics["nll"], token_mean, rtol=1e-5)
        hits = np.concatenate([(logits_of(params, e[0]).argmax(-1) == e[1])[e[2] != 0] for e in examples])
        np.testing.assert_allclose(metrics["mean_token_accuracy"], hits.mean(), rtol=1e-6)
        assert metrics["supervised_tokens"] == len(hits)


@pytest.mark.parametrize("reduction", ["token_mean", "example_mean"])
def test_micro_batches_packing_and_order_change_nothing(params, reduction):
    examples = make_examples()
    objective = SFT(reduction, z_loss=0.01, label_smoothing=0.1, chunk_size=4)
    whole = pack([examples[:2], examples[2:4], examples[4:6], examples[6:]])
    want = loss_and_sums(objective, whole, params)
    others = {
        "micro-batches": (whole, 4),
        "unpacked": (pack([[e] for e in examples]), 2),
        "another order": (pack([examples[5::-3], examples[6::-3], examples[7::-3], []]), 2),
    }
    for batch, parts in others.values():
        got = loss_and_sums(objective, batch, params, parts)
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6), got, want)


def test_a_batch_without_supervision_counts_zero(params):
    batch = pack([[make_examples()[3]], []])
    for reduction in ("token_mean", "example_mean"):
        (loss, sums), grads = loss_and_sums(SFT(reduction), batch, params)
        assert not any(np.any(x) for x in jax.tree.leaves((loss, grads, SFT().metrics(sums))))


def test_total_adds_terms():
    terms = {"a": Term(2.0, jnp.array(3.0), jnp.array(4.0)), "b": Term(-1.0, jnp.array(5.0), jnp.array(2.0))}
    assert total(terms) == 2 * 3 / 4 - 5 / 2
    empty = lambda s: total({"a": Term(1.0, s, jnp.zeros(()))})
    assert jax.value_and_grad(empty)(jnp.array(1.0)) == (0, 0)


def test_make_objective():
    config = ObjectiveConfig(reduction="example_mean", z_loss=1e-4, label_smoothing=0.1, chunk_size=512)
    assert make_objective(config) == SFT("example_mean", 1e-4, 0.1, 512)
    assert hash(make_objective(config)) == hash(SFT("example_mean", 1e-4, 0.1, 512))
    with pytest.raises(UserError, match=r"'sftt'; the objectives are: .*did you mean 'sft'"):
        make_objective(ObjectiveConfig(name="sftt"))


def test_a_field_that_the_objective_does_not_read_is_refused(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Plain:
        chunk_size: int

    monkeypatch.setitem(OBJECTIVES, "plain", Plain)
    assert make_objective(ObjectiveConfig("plain", chunk_size=3)) == Plain(3)
    with pytest.raises(UserError, match=r"objective\.z_loss is 0\.1, which the objective 'plain' does not"):
        make_objective(ObjectiveConfig("plain", z_loss=0.1))
