"""The numbers of mergekit on real weights: recorded for a few tensors, and for whole models where it can be run.

`JAXSFT_MERGEKIT_PYTHON` names a Python that has mergekit, and `JAXSFT_MERGEKIT_MODELS` a base and three models tuned
from it, float32 folders, separated by colons; `record_mergekit.py` made the recorded file from such.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxsft.config import MergeConfig
from jaxsft.merging.registry import METHODS, Leaf
from tests.merging.record_mergekit import CASES, RANDOM

HERE = Path(__file__).parent
PYTHON = os.environ.get("JAXSFT_MERGEKIT_PYTHON") or (sys.executable if importlib.util.find_spec("mergekit") else "")
MODELS = os.environ.get("JAXSFT_MERGEKIT_MODELS", "").split(":")


@pytest.fixture(scope="module", params=["recorded", "live"])
def found(request, tmp_path_factory):
    """Tensor -> case or input -> array."""
    path = HERE / "recorded" / "mergekit.npz"
    if request.param == "live":
        if not PYTHON or len(MODELS) != 4:
            pytest.skip("no mergekit here; set JAXSFT_MERGEKIT_PYTHON and JAXSFT_MERGEKIT_MODELS")
        path = tmp_path_factory.mktemp("live") / "mergekit.npz"
        script = [PYTHON, str(HERE / "record_mergekit.py"), str(path), *MODELS]
        subprocess.run(script, check=True, capture_output=True, timeout=900)
    tensors: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            case, name = key.split("/", 1)
            tensors.setdefault(name, {})[case] = arrays[key]
    return tensors


def ours(case: str, arrays: dict[str, np.ndarray], **settings) -> np.ndarray:
    """The same merge by this library."""
    method, count, own, shared, _ = (CASES | RANDOM)[case]
    weights = own.get("weight", [1 - shared["t"], shared["t"]] if "t" in shared else [1.0] * count)
    density = own.get("density", [shared.get("select_topk", 1.0)] * count)
    settings |= {name: own[name][0] for name in ("gamma", "epsilon") if name in own}
    config = MergeConfig(method=method, scale=shared.get("lambda", 1.0), **settings)
    base = jnp.asarray(arrays["base"]) if "base" in METHODS[method].reads and method != "karcher" else None
    models = tuple(jnp.asarray(arrays[str(k)]) for k in range(count))
    return np.asarray(METHODS[method].run(Leaf("tensor", models, base, tuple(weights), tuple(density)), config))


def steps(x: np.ndarray) -> np.ndarray:
    """The place of a bfloat16 among all of them, in order."""
    bits = x.astype(ml_dtypes.bfloat16).view(np.int16).astype(np.int32)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


@pytest.mark.parametrize("case", CASES)
def test_the_same_within_a_step_of_bfloat16(found, case):
    for name, arrays in found.items():
        apart = np.abs(steps(ours(case, arrays)) - steps(arrays[case]))
        # of entries that are equal at a cut, or differ by the last bit of a sum, it may keep others
        others = apart.size // 5000 if "density" in METHODS[CASES[case][0]].reads else 0
        assert (apart > 1).sum() <= others, f"{name}: {apart.max()} steps, {(apart > 1).sum()} of {apart.size} entries"
        moved = np.linalg.norm(arrays[case] - arrays["base"])
        assert moved > 0 and np.linalg.norm(ours(case, arrays) - arrays[case]) < 1e-3 * moved, name


@pytest.mark.parametrize("case", RANDOM)
def test_the_same_in_distribution(found, case):
    """Random masks differ; how many entries move, how far, and where to do not."""
    own = RANDOM[case][2]
    for name, arrays in found.items():
        size = arrays["base"].size
        if size < 1000:
            continue
        got, want = ours(case, arrays, rescale="l1") - arrays["base"], arrays[case] - arrays["base"]
        share = (want != 0).mean()
        error = 5 * (2 * share * (1 - share) / size) ** 0.5
        assert abs((got != 0).mean() - share) < error, name
        assert 0 < share < 1
        assert abs(np.abs(got).sum() / np.abs(want).sum() - 1) < 0.05, name
        tau = sum(w * (arrays[str(k)] - arrays["base"]) for k, w in enumerate(own["weight"]))
        slope = lambda x: (x * tau).sum() / (tau * tau).sum()  # noqa: B023
        assert abs(slope(got) / slope(want) - 1) < 0.1, name
