"""Ids that the tokenizer does not have are kept out wherever the library samples."""

import ast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.decoding.sampling import Sampling, choose
from jaxsft.errors import UserError
from tests.conftest import REPOSITORY

WITHOUT_TOKENIZER = {"scripts/benchmark_generate.py"}  # random prompts of a model


def samplings(file):
    """The calls of `Sampling` in a file."""
    tree = ast.parse(file.read_text())
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "Sampling"]


def test_all_of_the_library_says_how_many_ids_there_are():
    files = [*(REPOSITORY / "jaxsft").rglob("*.py"), *(REPOSITORY / "scripts").glob("*.py")]
    calls = {str(file.relative_to(REPOSITORY)): samplings(file) for file in files}
    calls = {name: found for name, found in calls.items() if found}
    assert calls.keys() == {"jaxsft/decoding/prompts.py"} | WITHOUT_TOKENIZER  # of all others `Prompter.sampling`
    for name, found in calls.items():
        for call in found:
            said = "vocabulary" in {keyword.arg for keyword in call.keywords}
            assert said or name in WITHOUT_TOKENIZER, f"{name}, line {call.lineno}"


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "top_p": 0.9}])
def test_only_ids_below_it_are_chosen(settings):
    """Where the others are far likelier; the draws are those of a matrix that ends there."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(64, 20)), jnp.float32).at[:, 12:].add(30)
    keys = jax.random.split(jax.random.key(0), 64)
    chosen = choose(logits, Sampling(**settings, vocabulary=12), keys)
    assert int(chosen.max()) < 12 and len(set(np.asarray(chosen).tolist())) > 5
    assert int(choose(logits, Sampling(**settings), keys).min()) >= 12
    if not settings:
        np.testing.assert_array_equal(chosen, jnp.argmax(logits[:, :12], -1))


def test_a_negative_number_is_refused():
    with pytest.raises(UserError, match="vocabulary is -1"):
        Sampling(vocabulary=-1)
