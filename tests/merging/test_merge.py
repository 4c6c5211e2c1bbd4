"""Weighted sums of models, and the folders that come of them."""

import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.config import MergeConfig, ModelConfig
from jaxsft.errors import UserError
from jaxsft.merging.interpolate import interpolate
from jaxsft.merging.merge import merge
from jaxsft.models.checkpoint import load_params, save_hf
from jaxsft.sharding import make_mesh
from jaxsft.training.restore import open_model
from tests.conftest import REPOSITORY
from tests.evaluation.folders import make_folder
from tests.training.conftest import run


def test_interpolation_by_hand():
    start, tuned = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([3.0, 2.0])}
    np.testing.assert_allclose(interpolate([start, tuned], (0.75, 0.25))["w"], [1.5, -1.0])
    for models, weights, want in [
        ((start, tuned), (1.0, 0.0), start),
        ((start, tuned), (0.0, 1.0), tuned),
        ((start, start), (0.5, 0.5), start),
    ]:
        np.testing.assert_array_equal(interpolate(models, weights)["w"], want["w"])
    with pytest.raises(ValueError, match="zip"):
        interpolate([start, tuned], (1.0,))


def test_bfloat16_is_rounded_once():
    """In bfloat16 throughout, 1/3 of 1, 2^-8 and 2^-8 would lose the small ones."""
    models = [{"w": jnp.asarray(x, jnp.bfloat16)} for x in (1.0, 3 * 2**-8, 3 * 2**-8)]
    merged = interpolate(models, (1.0, 1.0, 1.0))["w"]
    assert merged.dtype == jnp.bfloat16 and float(merged) == float(jnp.asarray(1 + 6 * 2**-8, jnp.bfloat16))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models that share shape and tokenizer."""
    here = tmp_path_factory.mktemp("models")
    decoder, params = make_folder(here / "start")
    other = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    save_hf(here / "tuned", decoder, other, tokenizer_from=here / "start")
    (here / "tuned" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return here


def test_the_script_leaves_a_folder_that_every_script_opens(folders, tmp_path):
    config = f"--config={REPOSITORY}/configs/merge/wise_ft.py"
    models = f"--config.models=('{folders / 'start'}', '{folders / 'tuned'}')"
    command = [sys.executable, str(REPOSITORY / "scripts" / "merge.py"), config, models]
    done = run([*command, "--config.weights=(0.75, 0.25)", f"--output={tmp_path / 'merged'}"])
    assert done.returncode == 0, done.stderr
    mesh = make_mesh(MergeConfig().mesh)
    opened = open_model(str(tmp_path / "merged"), ModelConfig(), mesh)
    start, tuned = (load_params(folders / name, opened.decoder, mesh) for name in ("start", "tuned"))
    want = jax.tree.map(lambda a, b: 0.75 * np.asarray(a, np.float64) + 0.25 * np.asarray(b, np.float64), start, tuned)
    jax.tree.map(lambda got, w: np.testing.assert_allclose(got, w, rtol=1e-5, atol=1e-7), opened.params, want)
    assert (tmp_path / "merged" / "chat_template.jinja").exists()
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "llama"


def test_refusals(folders, tmp_path):
    start, tuned = str(folders / "start"), str(folders / "tuned")

    def refuse(message, **fields):
        with pytest.raises(UserError, match=message):
            merge(MergeConfig(**{"models": (start, tuned), "weights": (0.5, 0.5)} | fields), tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    refuse(r"config\.method is 'liner'; .*did you mean 'linear'", method="liner")
    refuse(r"name two models or more", models=(start,), weights=(1.0,))
    refuse(r"config\.weights has 1 numbers for 2 models", weights=(1.0,))
    refuse(r"add up to 1\.1; a weighted mean needs a sum of 1", weights=(0.5, 0.6))
    make_folder(tmp_path / "wide", intermediate_size=96)
    refuse(r"wide are models of different shapes", models=(start, str(tmp_path / "wide")))
    shutil.copytree(start, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    file.write_text(file.read_text().replace('"<s>"', '"<t>"'))
    refuse(r"have different tokenizers", models=(start, str(tmp_path / "other")))
