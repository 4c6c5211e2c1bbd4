"""The choice of a token against closed forms, `transformers` and the exact distribution."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.decoding.sampling import Sampling, choose, keep_likeliest, penalize
from jaxsft.errors import UserError
from tests.decoding.make_greedy import WARPERS

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"max_new_tokens": 0},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"stop_strings": ("",)},
        {"seed": -1},
    ],
)
def test_refuses_bad_sampling(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_greedy_takes_the_first_of_the_largest():
    logits = np.random.default_rng(0).integers(-3, 3, (64, 9)).astype(np.float32)
    logits[0], logits[1, 1:] = -np.inf, -np.inf
    chosen = choose(jnp.asarray(logits), Sampling(), jax.random.split(KEY, 64))
    np.testing.assert_array_equal(chosen, logits.argmax(-1))
    assert chosen.dtype == jnp.int32


def test_keep_likeliest_closed_form():
    logits = jnp.log(jnp.array([[0.5, 0.05, 0.3, 0.15]]))
    kept = lambda k, p, m=0.0: np.isfinite(np.asarray(keep_likeliest(logits, k, p, m)))[0].tolist()
    assert kept(0, 1.0) == [True] * 4
    assert kept(1, 1.0) == [True, False, False, False]
    assert kept(3, 1.0) == [True, False, True, True]
    assert kept(0, 0.4) == [True, False, False, False]  # the likeliest alone reaches it
    assert kept(0, 0.7) == [True, False, True, False]
    assert kept(0, 0.9) == [True, False, True, True]
    assert kept(2, 0.9) == [True, False, True, False]  # 0.5 / 0.8 and 0.3 / 0.8 are left
    assert kept(0, 1.0, 0.31) == [True, False, True, False]  # at least 0.155
    assert kept(0, 1.0, 1.0) == [True, False, False, False]
    assert kept(2, 0.6) == [True, False, False, False]  # 0.5 / 0.8 = 0.625 reaches 0.6
    assert kept(0, 0.62, 0.31) == [True, False, True, False]  # of all, 0.5 does not reach 0.62


def test_narrowed_logits_are_those_of_transformers():
    recorded = np.load(Path(__file__).parent / "warped.npz")
    logits, seen, given = recorded["logits"], recorded["seen"], {name: value for name, (_, value) in WARPERS.items()}
    ours = {
        "temperature": logits / given["temperature"],
        "top_k": keep_likeliest(logits, given["top_k"], 1.0),
        "top_p": keep_likeliest(logits, 0, given["top_p"]),
        "min_p": keep_likeliest(logits, 0, 1.0, given["min_p"]),
        "repetition_penalty": penalize(logits, seen, given["repetition_penalty"]),
    }
    assert set(ours) == set(WARPERS)
    for name, values in ours.items():
        np.testing.assert_allclose(values, recorded[name], rtol=1e-6, err_msg=name)
        assert not np.array_equal(values, logits), name


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"temperature": 1.0}, 6),
        ({"temperature": 0.5}, 6),
        ({"temperature": 2.0, "top_k": 3}, 3),
        ({"temperature": 1.0, "top_p": 0.8}, 3),
        ({"temperature": 2.0, "top_p": 0.8}, 4),
        ({"temperature": 1.0, "min_p": 0.1}, 4),
        ({"temperature": 1.0, "repetition_penalty": 2.0}, 6),
        ({"temperature": 1.0, "repetition_penalty": 5.0, "top_k": 3}, 3),  # without the likeliest of before
    ],
)
def test_frequencies_are_the_softmax(settings, kept):
    """Pearson's chi-square against the exact distribution, below the quantile of one run in a million."""
    logits, draws = np.array([1.0, 0.0, 2.0, -1.0, 0.5, -3.0]), 40_000
    seen = np.array([False, False, True, False, False, True])
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, 6))
    tokens = choose(rows, Sampling(**settings), jax.random.split(KEY, draws), jnp.broadcast_to(seen, rows.shape))
    penalty = settings.get("repetition_penalty", 1.0)
    logits = np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)
    expected = np.exp(logits / settings["temperature"])
    expected[np.argsort(expected)[: 6 - kept]] = 0
    expected *= draws / expected.sum()
    observed = np.bincount(np.asarray(tokens), minlength=6)
    assert not observed[expected == 0].any()
    held = expected > 0
    chi_square = np.sum((observed[held] - expected[held]) ** 2 / expected[held])
    assert chi_square < {2: 27.6, 3: 30.6, 5: 35.8}[kept - 1]  # scipy.stats.chi2.isf(1e-6, kept - 1)
