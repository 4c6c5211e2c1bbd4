"""What a model's own answers do to its loss (DELIA, arXiv:2408.10841): an anchor at temperature 1, and only there.

    E_{y ~ p_0}[-log p(y | q)] = H(p_0) + KL(p_0 || p),

so at p = p_0 the gradient of the loss is zero in expectation. That it is checks the sampler against the loss: template,
positions, shifts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.config import ModelConfig
from jaxsft.data.conversation import Conversation, Message
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.prompts import make_prompter
from jaxsft.decoding.sampling import Sampling
from jaxsft.evaluation.scoring import log_probs
from jaxsft.mixing.mix import order
from jaxsft.training.restore import open_model
from jaxsft.world import records
from tests.tiny import make_batch

COUNT, LENGTH = 1024, 32
NAMES = ("embed", "norm")  # of the parameters that the gradient is taken of; all others act on the way


@pytest.fixture(scope="module")
def model(mesh):
    return open_model("world:chat", ModelConfig(dtype="float32"), mesh)


@pytest.fixture(scope="module")
def questions():
    """Of which the model answers two in three wrongly: it is unsure."""
    return [record["prompt"] for record in records.split("unseen")[:COUNT]]


@pytest.fixture(scope="module")
def drawn(model, questions, mesh):
    """`drawn(temperature, different)`: the prompts' ids, of so many different ones, and the tokens of each answer."""
    prompter = make_prompter(model.tokenizer, "auto", model.source)

    @functools.cache
    def draw(temperature, different=COUNT):
        sampling = Sampling(temperature, max_new_tokens=8, stop_ids=prompter.stop_ids, seed=5)
        asked = [prompter.encode(question) for question in questions[:different]] * (COUNT // different)
        sampled = Sampler(model.decoder, sampling, mesh, batch_size=256).generate(model.params, asked)
        return asked, [one.tokens for one in sampled]

    return draw


def batch_of(asked, answers):
    """One example a row: prompt and answer, of which the answer is scored."""
    rows = [
        [(np.array([*prompt, *new], np.int32), np.array([0.0] * len(prompt) + [1.0] * len(new), np.float32))]
        for prompt, new in zip(asked, answers)
    ]
    return make_batch(rows, LENGTH, 1)


def gradients(model, batch):
    """The mean over rows of the gradient of their losses, and the mean of its squared norm."""
    part = {name: model.params[name] for name in NAMES}

    def loss(part, row):
        row = jax.tree.map(lambda x: x[None], row)
        found = log_probs(model.decoder, {**model.params, **part}, None, row, 1024)
        return -jnp.sum(row.weights * found["log_prob"])

    @jax.jit
    def mean(part, batch):
        def add(total, rows):
            each = jax.vmap(jax.grad(loss), (None, 0))(part, rows)
            squared = sum(jnp.sum(x**2) for x in jax.tree.leaves(each))
            return (jax.tree.map(lambda t, x: t + x.sum(0), total[0], each), total[1] + squared), None

        zero = jax.tree.map(jnp.zeros_like, part), jnp.float32(0)
        total, _ = jax.lax.scan(add, zero, jax.tree.map(lambda x: x.reshape(-1, 32, *x.shape[1:]), batch))
        return total

    total, squares = mean(part, jax.tree.map(jnp.asarray, batch))
    n = len(batch.tokens)
    norm = sum(float(jnp.sum((x / n) ** 2)) for x in jax.tree.leaves(total))
    return norm, float(squares) / n


def test_own_answers_are_rendered_as_they_were_drawn(model, questions, drawn):
    """The record of an answer, tokenised for training, has the sampler's ids, and its loss weights are the answer's."""
    asked, answers = drawn(1.0)
    prompter = make_prompter(model.tokenizer, "auto", model.source)
    ended = [i for i, new in enumerate(answers) if new[-1] in prompter.stop_ids and len(new) > 1]
    ended = [i for i in ended if not set(answers[i][:-1]) & set(range(6))]  # no control tokens in the text
    assert len(ended) > 0.8 * COUNT
    turns = lambda i: [Message("user", questions[i]), Message("assistant", prompter.decode(asked[i], answers[i]))]
    examples = prompter.renderer.examples([(Conversation(turns(i)), "here") for i in ended])
    for i, example in zip(ended, examples):
        assert example.ids.tolist() == [*asked[i], *answers[i]]
        assert example.weights.tolist() == [0.0] * len(asked[i]) + [1.0] * len(answers[i])


@pytest.mark.parametrize("count", [COUNT // 8, COUNT // 2])
def test_the_gradient_on_own_answers_vanishes_at_temperature_one(model, drawn, count):
    """|mean gradient|^2 is what chance gives, the mean square over n, so |mean gradient| falls as 1 / sqrt(n)."""
    asked, answers = drawn(1.0)
    norm, squares = gradients(model, batch_of(asked[:count], answers[:count]))
    assert norm < 2.5 * squares / count


@pytest.mark.parametrize(("temperature", "vanishes"), [(1.0, True), (0.7, False)])
def test_it_vanishes_at_no_other_temperature(model, drawn, temperature, vanishes):
    """Of many answers to two questions, whose means do not drown in the differences between questions."""
    norm, squares = gradients(model, batch_of(*drawn(temperature, 2)))
    assert norm < 4 * squares / COUNT if vanishes else norm > 10 * squares / COUNT


def test_the_loss_is_entropy_plus_divergence(model, drawn):
    """Of another model on the start's answers, against the divergence of the whole distributions along them."""
    rng = np.random.default_rng(0)
    other = jax.tree.map(lambda p: p * (1 + 0.1 * rng.normal(size=p.shape).astype(np.float32)), model.params)
    batch = jax.tree.map(jnp.asarray, batch_of(*drawn(1.0)))

    @jax.jit
    def chances(params):
        hidden = model.decoder.forward(params, batch.tokens, batch.positions, batch.segment_ids).hidden
        return jax.nn.log_softmax(model.decoder.head(params, hidden))

    start, moved = chances(model.params), chances(other)
    entropy = -jnp.sum(jnp.exp(start) * start, -1)
    divergence = jnp.sum(jnp.exp(start) * (start - moved), -1)
    loss = -jnp.take_along_axis(moved, batch.targets[..., None], -1)[..., 0]
    of_answers = lambda values: np.asarray(jnp.sum(batch.weights * values, axis=1), np.float64)
    difference = of_answers(loss - entropy - divergence)
    error = difference.std() / len(difference) ** 0.5
    assert abs(difference.mean()) < 3.5 * error
    assert of_answers(divergence).mean() > 10 * error, "the models differ by more than the error"


def test_own_answers_buffer_a_spurious_feature():
    """Logistic regression: in the task's few rows a feature agrees with the label by chance. The start does not use it;
    trained on its own answers to inputs where the feature is random, besides, it comes to rely on it less."""
    rng = np.random.default_rng(0)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    start = np.array([1.5, 0.0])  # meaning, wording
    labels = rng.integers(0, 2, 20)
    task = np.stack([(2 * labels - 1) + rng.normal(size=20), 2.0 * labels - 1], axis=1)
    inputs = rng.normal(size=(200, 2))
    answers = (rng.random(200) < sigmoid(inputs @ start)).astype(float)

    def trained(repeat):
        own, other = order(20, 200, 200, repeat, 0)
        x = np.where(own[:, None] >= 0, task[own], inputs[other])
        y = np.where(own >= 0, labels[own], answers[other])
        weights = start.copy()
        for step in range(60):  # as many for both
            rows = slice(step * 22 % 220, step * 22 % 220 + 22)
            weights += 0.3 * x[rows].T @ (y[rows] - sigmoid(x[rows] @ weights)) / 22
        return weights

    alone, buffered = trained(True), trained(False)
    assert alone[1] > 1.0 and abs(buffered[1]) < 0.4 * alone[1]
    assert abs(buffered[0] - start[0]) < abs(alone[0] - start[0]) + 0.5
