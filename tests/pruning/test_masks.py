"""Masks against sorting by hand, on small matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.errors import UserError
from jaxsft.pruning import masks


def test_the_lowest_share_of_every_output_goes():
    scores = np.random.default_rng(0).random((10, 6)).astype(np.float32)
    kept = np.asarray(masks.kept(jnp.asarray(scores), masks.parse("0.35")))
    for column in range(6):
        gone = set(np.argsort(scores[:, column])[:3])  # int(10 * 0.35)
        assert {i for i in range(10) if not kept[i, column]} == gone


@pytest.mark.parametrize(("text", "keep", "group"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
def test_the_best_of_every_group_stay(text, keep, group):
    scores = np.random.default_rng(0).random((16, 5)).astype(np.float32)
    kept = np.asarray(masks.kept(jnp.asarray(scores), masks.parse(text)))
    for start in range(0, 16, group):
        for column in range(5):
            part = scores[start : start + group, column]
            best = set(np.argsort(part)[-keep:])
            assert {i for i in range(group) if kept[start + i, column]} == best


def test_equal_scores_still_give_the_exact_number():
    for text, share in (("2:4", 0.5), ("0.25", 0.25)):
        kept = np.asarray(masks.kept(jnp.zeros((8, 3)), masks.parse(text)))
        np.testing.assert_array_equal((~kept).sum(0), 8 * share)


def test_wanda_is_the_weight_times_the_norm_of_its_input():
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(30, 6))
    ours = masks.wanda(jnp.asarray(kernel), jnp.asarray((x**2).sum(0), jnp.float32), 5)
    np.testing.assert_allclose(ours, np.abs(kernel) * np.linalg.norm(x, axis=0)[:, None] / 5**0.5, rtol=1e-5)
    np.testing.assert_array_equal(masks.magnitude(jnp.asarray(kernel)), np.abs(kernel))


@pytest.mark.parametrize("text", ["", "4:4", "0:4", "5:4", "1.0", "0", "half", "2:4:8", "-0.5"])
def test_what_is_no_sparsity(text):
    with pytest.raises(UserError, match=r"config\.sparsity is .*; give a share"):
        masks.parse(text)


def test_groups_that_do_not_divide():
    with pytest.raises(UserError, match=r"keeps 2 of every 4 inputs, which does not divide the 10 inputs"):
        masks.kept(jnp.zeros((10, 3)), masks.parse("2:4"))
