"""The vectorised exchange against plain loops over outputs, and what it must never break."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.config import DSnoTConfig
from jaxsft.pruning import masks
from jaxsft.pruning.dsnot import refine

CONFIGS = [DSnoTConfig(paper=paper, power=power) for paper in (False, True) for power in (1.0, 0.5)]


def loop(kernel, kept, scores, mean, variance, config, sparsity):
    """One output after the other, by the text of the module's docstring."""
    kept, errors = kept.copy(), []
    for i in range(kernel.shape[1]):
        change, column, moved = kernel[:, i] * mean, kept[:, i].copy(), set()
        error = change[~column].sum()
        for _ in range(config.cycles):
            if abs(error) <= config.threshold:
                break
            sign = np.sign(error)
            back = [j for j in range(len(mean)) if not kept[j, i] and j not in moved]
            if not back:
                break
            grow = max(back, key=lambda j: sign * change[j] / variance[j] ** config.power)
            out = [j for j in range(len(mean)) if kept[j, i] and j not in moved]
            if sparsity.group:
                out = [j for j in out if j // sparsity.group == grow // sparsity.group]
            else:
                out = [j for j in out if sign * change[j] < 0]
            if not out:
                break
            prune = min(out, key=lambda j: scores[j, i])
            after = error + change[prune] - change[grow]
            if not config.paper and abs(after) >= abs(error):
                break
            if config.paper and sparsity.group and np.sign(after) != sign:
                break
            column[grow], column[prune], error = True, False, after
            moved |= {grow, prune}
        kept[:, i] = column
        errors.append(error)
    return kept, np.array(errors)


def case(seed, sparsity, inputs=24, outputs=10):
    """float64 inputs: with them both ways choose the same."""
    rng = np.random.default_rng(seed)
    kernel, mean = rng.normal(size=(inputs, outputs)), 3 * rng.normal(size=inputs)
    variance = rng.uniform(0.2, 3, inputs)
    scores = np.abs(kernel) * np.sqrt(variance + mean**2)[:, None]
    return kernel, np.asarray(masks.kept(jnp.asarray(scores), sparsity)), scores, mean, variance


def run(arguments, config, sparsity):
    found = jax.jit(lambda *a: refine(*a, config, sparsity))(*map(jnp.asarray, arguments))
    return tuple(map(np.asarray, found))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"paper={c.paper},power={c.power}")
@pytest.mark.parametrize("text", ["0.5", "0.75", "2:4", "1:4"])
def test_the_loop_over_outputs(text, config):
    sparsity = masks.parse(text)
    with jax.enable_x64(True):
        for seed in range(4):
            arguments = case(seed, sparsity)
            kept, error = run(arguments, config, sparsity)
            expected, expected_error = loop(*arguments, config, sparsity)
            np.testing.assert_array_equal(kept, expected)
            np.testing.assert_allclose(error, expected_error, atol=1e-12)
            assert (kept != arguments[1]).any(), "nothing was exchanged"


@pytest.mark.parametrize("config", CONFIGS[::2], ids=lambda c: f"paper={c.paper}")
@pytest.mark.parametrize("text", ["0.5", "2:4"])
def test_what_stays(text, config):
    """As many weights in each output and group; the error that is told is that of the mask; the guard lets it fall."""
    sparsity = masks.parse(text)
    for seed in range(4):
        arguments = case(seed, sparsity, 64, 40)
        kernel, before, _, mean, _ = arguments
        kept, error = run(arguments, config, sparsity)
        np.testing.assert_array_equal(kept.sum(0), before.sum(0))
        if sparsity.group:
            np.testing.assert_array_equal(kept.reshape(-1, 4, 40).sum(1), 2)
        change = kernel * mean[:, None]
        np.testing.assert_allclose(error, np.where(kept, 0, change).sum(0), atol=2e-4)
        old = np.abs(np.where(before, 0, change).sum(0))
        if not config.paper:
            assert (np.abs(error) <= old + 1e-4).all() and np.abs(error).mean() < 0.8 * old.mean()


def test_nothing_to_do():
    """Errors below the threshold, no cycles, or inputs whose mean is zero leave the mask as it was."""
    sparsity = masks.parse("0.5")
    arguments = case(0, sparsity)
    for config in (DSnoTConfig(threshold=math.inf), DSnoTConfig(cycles=0)):
        np.testing.assert_array_equal(run(arguments, config, sparsity)[0], arguments[1])
    still = (*arguments[:3], np.zeros(24), arguments[4])
    np.testing.assert_array_equal(run(still, dataclasses.replace(CONFIGS[0], paper=True), sparsity)[0], arguments[1])


@pytest.mark.parametrize("sparsity", [masks.Sparsity(share=0.5), masks.Sparsity(keep=2, group=4)])
@pytest.mark.parametrize("paper", [False, True])
def test_inputs_that_never_change_leave_masks_of_their_size(sparsity, paper):
    """Divided by their variance they are infinitely good or bad, which is no reason to move what must not move."""
    for seed in range(15):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((40, 8)) + 2 * rng.standard_normal(8)
        constant = rng.random(8) < 0.6
        x[:, constant] = rng.standard_normal()
        kernel = jnp.asarray(rng.standard_normal((8, 6)), jnp.float32)
        scores = masks.wanda(kernel, jnp.asarray((x**2).sum(0), jnp.float32), 4)
        mask = masks.kept(scores, sparsity)
        variance = jnp.asarray(np.where(constant, 0, x.var(0)), jnp.float32)
        config = DSnoTConfig((), 50, 0.1, 1.0, paper)
        refined, _ = refine(kernel, mask, scores, jnp.asarray(x.sum(0) / 4, jnp.float32), variance, config, sparsity)
        of_group = lambda m: np.asarray(m).reshape(-1, sparsity.group or 8, 6).sum(1)
        np.testing.assert_array_equal(of_group(refined), of_group(mask))
