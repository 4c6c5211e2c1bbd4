"""Logits against recorded ones of `transformers`, for every family; live ones where torch is importable."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.models.architecture import Architecture
from jaxsft.models.checkpoint import load_architecture, load_params, save_hf
from jaxsft.models.decoder import Decoder
from tests.models.make_golden import CASES, GOLDEN, build, logits, tokens

PROMPT = 11  # shorter than the rows, longer than the sliding window


@functools.cache
def load(folder: Path) -> tuple[Decoder, dict]:
    decoder = Decoder(load_architecture(folder))
    return decoder, load_params(folder, decoder)


def run(decoder: Decoder, params: dict, ids: np.ndarray) -> np.ndarray:
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    hidden = jax.jit(decoder.forward)(params, ids, positions, np.ones_like(ids)).hidden
    return np.asarray(jax.jit(decoder.head)(params, hidden))


def run_cached(decoder: Decoder, params: dict, ids: np.ndarray, prompts: list[int]) -> np.ndarray:
    """Row r's first `prompts[r]` tokens at once, right-padded, and the rest one by one, rows at their own positions."""
    rows, length = ids.shape
    step = jax.jit(decoder.forward, donate_argnames="cache")
    lengths, width = np.array(prompts), max(prompts)
    out = np.full((rows, length, decoder.arch.vocab_size), np.nan, np.float32)
    real = np.arange(width) < lengths[:, None]
    positions = np.where(real, np.arange(width), 0).astype(np.int32)
    result = step(params, ids[:, :width], positions, real.astype(np.int32), cache=decoder.init_cache(rows, length + 3))
    head = jax.jit(decoder.head)
    out[:, :width][real] = np.asarray(head(params, result.hidden))[real]
    for _ in range(length - min(prompts)):
        active = lengths < length  # rows that are done pass padding
        at = np.where(active, lengths, 0)
        new = np.take_along_axis(ids, at[:, None], 1)
        result = step(params, new, at[:, None].astype(np.int32), active[:, None].astype(np.int32), cache=result.cache)
        out[active, at[active]] = np.asarray(head(params, result.hidden))[active, 0]
        lengths = lengths + active
    return out


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case):
    decoder, params = load(GOLDEN / case)
    golden = np.load(GOLDEN / case / "golden.npz")
    np.testing.assert_allclose(run(decoder, params, golden["tokens"]), golden["logits"], atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_cached_logits_equal_those_of_transformers(case):
    decoder, params = load(GOLDEN / case)
    golden = np.load(GOLDEN / case / "golden.npz")
    cached = run_cached(decoder, params, golden["tokens"], [PROMPT, PROMPT - 6])
    np.testing.assert_allclose(cached, golden["logits"], atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_both_dialects_of_the_config_mean_the_same(case):
    config = json.loads((GOLDEN / case / "config.json").read_text())
    arch = Architecture.from_hf(config)
    assert Architecture.from_hf(old_dialect(config)) == arch
    written = arch.to_hf("float16")
    assert Architecture.from_hf(written) == arch
    assert Architecture.from_hf({k: v for k, v in written.items() if k not in ("rope_parameters", "dtype")}) == arch
    new = {k: v for k, v in written.items() if k not in ("rope_theta", "rope_scaling", "rope_local_base_freq")}
    assert Architecture.from_hf(new) == arch
    assert written["torch_dtype"] == written["dtype"] == "float16"
    for name, value in config.items():
        assert written[name] == value or name == "transformers_version", name


def old_dialect(config: dict) -> dict:
    """The config as transformers 4 writes it, by its own documentation of the fields."""
    old = {k: v for k, v in config.items() if k not in ("rope_parameters", "dtype")} | {"torch_dtype": config["dtype"]}
    rope = config["rope_parameters"]
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    old["rope_theta"] = rope["rope_theta"]
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
    old["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    return old


def test_real_weights_match_a_float64_reference_and_its_greedy_text(real_data):
    decoder, params = load(real_data / "models" / "stories260K")
    golden = np.load(real_data / "models" / "stories260K" / "golden.npz")
    ids = golden["greedy_ids"][None].astype(np.int32)
    np.testing.assert_allclose(run(decoder, params, ids)[0], golden["logits_f64"], atol=2e-4)
    prompt = golden["prompt_ids"].astype(np.int32)
    chosen, cache = list(prompt), decoder.init_cache(1, ids.shape[1])
    step = jax.jit(decoder.forward)
    new, start = prompt, 0
    while len(chosen) < ids.shape[1]:
        positions = np.arange(start, start + len(new), dtype=np.int32)[None]
        output = step(params, new[None], positions, np.ones_like(positions), cache=cache)
        cache, start = output.cache, start + len(new)
        new = np.asarray(jnp.argmax(decoder.head(params, output.hidden[:, -1]), -1), np.int32)
        chosen.append(int(new[0]))
    assert chosen == ids[0].tolist()


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_live_ones_and_transformers_loads_the_export(case, tmp_path):
    pytest.importorskip("torch", reason="recorded values are used where torch is not installed")
    import torch
    import transformers

    model = build(case)
    model.save_pretrained(tmp_path / "in")
    decoder, params = load(tmp_path / "in")
    np.testing.assert_allclose(run(decoder, params, tokens()), logits(model, tokens()), atol=1e-4)
    save_hf(tmp_path / "out", decoder, params)
    shutil.rmtree(tmp_path / "in")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    np.testing.assert_array_equal(logits(again.eval(), tokens()), logits(model, tokens()))
