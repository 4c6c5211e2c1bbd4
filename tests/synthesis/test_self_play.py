"""Pairs with the model's own answers, and SPIN's promises about training on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.config import SelfPlayConfig
from jaxsft.data.conversation import Message, parse
from jaxsft.objectives.preference import preference_loss
from jaxsft.synthesis.method import Answer, counts
from jaxsft.synthesis.self_play import SelfPlay
from tests.synthesis.rows import Says, make_rows

ROWS = [
    {"prompt": "one ?", "completion": "1", "source": "book", "system": "count ."},
    {"prompt": "two ?", "completion": "2 "},
    {"prompt": "three ?", "completion": "3"},
    {"messages": [{"role": "user", "content": "four ?"}]},
    {"prompt": "five ?", "completion": "5"},
]
SAID = {"one ?": "I", "two ?": "2", "three ?": Answer("III and", "length"), "five ?": ""}


def test_pairs():
    model = Says(lambda asked: SAID[asked.messages[-1].content])
    made = SelfPlay(SelfPlayConfig())(make_rows(*ROWS), model)
    assert counts(made.outcomes) == {
        "kept": 1,
        "fell back": {},
        "dropped": {
            "cut off before its end": 1,
            "empty": 1,
            "no answer to prefer": 1,
            "the same as the given answer": 1,
        },
    }
    assert [(asked.id, asked.messages[0].role) for asked in model.asked["answers"]][:2] == [(0, "system"), (1, "user")]
    record = made.outcomes[0].record
    pair = parse(record, "here")
    prompt = [Message("system", "count ."), Message("user", "one ?")]
    assert pair.messages == [*prompt, Message("assistant", "1")]
    assert pair.rejected == [*prompt, Message("assistant", "I")]
    assert (pair.source, record["synthesis"]) == ("book", {"method": "self_play", "row": 0, "sample": 0})


def test_blanks_do_not_tell_the_answers_apart():
    made = SelfPlay(SelfPlayConfig())(make_rows(ROWS[1]), Says(lambda asked: "II"))
    pair = parse(made.outcomes[0].record, "here")
    assert (pair.messages[-1].content, pair.rejected[-1].content) == ("2", "II")


def test_several_pairs_of_a_row():
    made = SelfPlay(SelfPlayConfig(samples=2))(make_rows(*ROWS[:2]), Says(lambda asked: f"own {asked.id}"))
    rejected = [outcome.record["rejected"][0]["content"] for outcome in made.outcomes]
    assert rejected == ["own 0", "own 1", "own 2", "own 3"], "no two are drawn alike"
    assert [outcome.record["chosen"][0]["content"] for outcome in made.outcomes] == ["1", "1", "2", "2"]


# --- training on them: two answers' log-probabilities under a categorical model


def expected_loss(logits, opponent, data, beta):
    """Of y from the data and y' from the opponent, in expectation: every pair with its probability."""
    ratios = jax.nn.log_softmax(logits) - jax.nn.log_softmax(opponent)
    losses = preference_loss(ratios[:, None], ratios[None, :], beta)
    return jnp.sum(data[:, None] * jax.nn.softmax(opponent)[None, :] * losses)


def test_at_the_start_of_an_iteration():
    """Chen et al. 2024: the loss is ln 2 and the gradient -(beta / 2) (grad log p(y) - grad log p(y'))."""
    logits, beta = jnp.array([0.3, -1.0, 2.0, 0.1]), 0.1
    log_p = lambda z: jax.nn.log_softmax(z)
    loss = lambda z, y, own: preference_loss(log_p(z)[y] - log_p(logits)[y], log_p(z)[own] - log_p(logits)[own], beta)
    value, slope = jax.value_and_grad(loss)(logits, 1, 2)
    assert value == pytest.approx(np.log(2), rel=1e-6)
    by_hand = -(beta / 2) * (np.eye(4)[1] - np.eye(4)[2])  # the log-partitions cancel
    np.testing.assert_allclose(slope, by_hand, atol=1e-7)
    swapped = jax.grad(loss)(logits, 2, 1)
    np.testing.assert_allclose(swapped, -slope, atol=1e-7)
    assert not np.any(jax.grad(loss)(logits + 0.5 * jnp.arange(4), 3, 3)), "an answer against itself teaches nothing"


def test_iterations_come_closer_to_the_data():
    """The minimum of an iteration is p(y) ~ p_t(y) (p_data(y) / p_t(y))^(1 / beta) (their equation 4.9 for the logistic
    loss); with beta 2 every iteration halves all log-ratios to the data."""
    with jax.enable_x64():
        rng, beta = np.random.default_rng(0), 2.0
        data = jax.nn.softmax(jnp.array(rng.normal(size=6)))
        logits = jnp.array(rng.normal(size=6))
        kl = lambda z: float(jnp.sum(data * (jnp.log(data) - jax.nn.log_softmax(z))))
        distances = [kl(logits)]
        step = jax.jit(lambda z, start: z - 2.0 * jax.grad(expected_loss)(z, start, data, beta))
        for _ in range(3):
            start = logits
            for _ in range(4000):
                logits = step(logits, start)
            want = jax.nn.log_softmax(jax.nn.log_softmax(start) + (jnp.log(data) - jax.nn.log_softmax(start)) / beta)
            np.testing.assert_allclose(jax.nn.log_softmax(logits), want, atol=1e-3)
            distances.append(kl(logits))
        assert distances == sorted(distances, reverse=True)
        assert distances[3] < distances[0] / 30
        slope = jax.grad(expected_loss)(jnp.log(data), jnp.log(data), data, beta)
        assert not np.any(np.abs(slope) > 1e-12), "the data is where it ends"
