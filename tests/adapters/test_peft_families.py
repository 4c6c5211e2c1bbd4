"""Every family under LoRA as `peft` computes it, and merged as it computes unmerged."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.lora import LoRA
from jaxsft.adapters.method import Parts
from jaxsft.adapters.peft import load_peft, save_peft
from jaxsft.config import LoRAConfig
from jaxsft.models import layout
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder
from tests.adapters.record_peft_families import FAMILIES, FOLDER, NEW, PROMPT, config, our_adapter, tokens
from tests.models.make_golden import GOLDEN
from tests.tiny import logits


@functools.cache
def base(family: str):
    decoder = Decoder(load_architecture(GOLDEN / family), remat="none")
    return decoder, load_params(GOLDEN / family, decoder)


def model(family, settings, arrays, dtype=jnp.float32):
    """Decoder, unmerged parameters and adapter nodes, merged parameters; the base in `dtype`."""
    decoder, params = base(family)
    if dtype != jnp.float32:
        decoder = Decoder(decoder.arch, dtype=dtype, remat="none")
        params = jax.tree.map(lambda p: p.astype(dtype), params)
    method = LoRA(settings, decoder.arch)
    parts = Parts(jax.tree.map(jnp.asarray, arrays), {"base": params}, {})
    return decoder, *method.compose(parts, {}), method.merge(parts)


def check(family, settings, arrays, computed, name):
    """Logits of both passes against the recorded ones, and the tokens that follow the prompt, greedily, exactly."""
    decoder, params, adapters, merged = model(family, settings, arrays)
    ids = jnp.asarray(tokens())
    expected = computed[f"{name}_logits"]
    assert np.abs(expected - computed["base_logits"]).max() > 0.1, "the adapter does something"
    np.testing.assert_allclose(logits(decoder, ids, params, adapters), expected, atol=2e-4)
    np.testing.assert_allclose(logits(decoder, ids, merged), expected, atol=2e-4)
    row = np.concatenate([tokens()[:, :PROMPT], np.zeros((2, NEW), np.int32)], 1)
    for at in range(PROMPT, PROMPT + NEW):
        row[:, at] = np.argmax(logits(decoder, jnp.asarray(row), params, adapters)[:, at - 1], -1)
    np.testing.assert_array_equal(row[:, PROMPT:], computed[f"{name}_greedy"])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_peft_wrote(family):
    """Ranks and alphas of their own for some maps, rsLoRA, and what is plain."""
    arch = base(family)[0].arch
    arrays, settings = load_peft(FOLDER / family / "theirs", arch)
    contents = json.loads((FOLDER / family / "theirs" / "adapter_config.json").read_text())
    assert settings.rslora == contents["use_rslora"]
    assert settings.rank == max([contents["r"], *contents["rank_pattern"].values()])
    check(family, settings, arrays, np.load(FOLDER / family / "computed.npz"), "theirs")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_peft_makes_of_ours(family, tmp_path):
    """`save_peft` wrote this adapter for the recording; it still reads as what was recorded."""
    settings, arch = config(family), base(family)[0].arch
    save_peft(tmp_path / "ours", arch, our_adapter(family), settings, "base")
    arrays, read = load_peft(tmp_path / "ours", arch)
    assert (read.rank, read.alpha, read.rslora) == (settings.rank, settings.alpha, settings.rslora)
    for path, array in layout.leaves(our_adapter(family)):
        np.testing.assert_array_equal(array, layout.get(arrays, path))
    check(family, settings, our_adapter(family), np.load(FOLDER / family / "computed.npz"), "ours")


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_unmerged(family):
    """In float32 to 1e-5; in bfloat16 as far as its 8 bits carry: the merged weights are rounded once more."""
    settings = LoRAConfig(2, 3.0, targets=("layers.*.attn.*_proj", "layers.*.mlp.*_proj"))
    arch, rng = base(family)[0].arch, np.random.default_rng(0)
    shapes = jax.eval_shape(lambda b: LoRA(settings, arch).split(b, jax.random.key(0)), base(family)[1]).params
    arrays = jax.tree.map(lambda s: (0.05 * rng.normal(size=s.shape)).astype(np.float32), shapes)
    ids = jnp.asarray(tokens())
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.15)):
        decoder, params, adapters, merged = model(family, settings, arrays, dtype)
        unmerged, again = logits(decoder, ids, params, adapters), logits(decoder, ids, merged)
        scale = float(jnp.abs(unmerged).max())
        assert float(jnp.abs(unmerged - again).max()) <= tolerance * max(scale, 1)
        if dtype == jnp.float32:
            assert float(jnp.abs(unmerged - logits(decoder, ids, params)).max()) > 1e-2, "the adapter is nothing"
