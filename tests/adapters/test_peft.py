"""PEFT folders against `peft` itself: values it recorded (record_peft.py), and live where torch is importable."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.lora import LoRA
from jaxsft.adapters.method import Parts
from jaxsft.adapters.peft import load_peft, save_peft
from jaxsft.config import LoRAConfig
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder

RECORDED = Path(__file__).parent / "recorded"
TARGETS = {
    "every_layer": ("head", "layers.*.attn.o_proj", "layers.*.attn.q_proj", "layers.*.mlp.down_proj"),
    "one_layer_rslora": ("layers.1.attn.v_proj",),
}


@pytest.fixture(scope="module")
def base():
    decoder = Decoder(load_architecture(RECORDED / "base"))
    return decoder, load_params(RECORDED / "base", decoder)


def logits(decoder, base, adapter_params, config, tokens):
    parts = Parts(adapter_params, {"base": base}, {})
    params, adapters = LoRA(config, decoder.arch).compose(parts, {})
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = decoder.forward(params, tokens, positions, jnp.ones_like(tokens), adapters=adapters).hidden
    return np.asarray(decoder.head(decoder.head_params(params, adapters), hidden))


@pytest.mark.parametrize("name", TARGETS)
def test_reads_what_peft_wrote(base, name):
    decoder, params = base
    recorded = np.load(RECORDED / "logits.npz")
    adapter, config = load_peft(RECORDED / name, decoder.arch)
    assert config.targets == TARGETS[name]
    ours = logits(decoder, params, adapter, config, jnp.array(recorded["tokens"]))
    np.testing.assert_allclose(ours, recorded[name], atol=2e-4)
    assert np.abs(ours - recorded[next(n for n in TARGETS if n != name)]).max() > 0.1


@pytest.mark.parametrize("name", TARGETS)
def test_writes_what_peft_wrote(base, tmp_path, name):
    decoder, _ = base
    adapter, config = load_peft(RECORDED / name, decoder.arch)
    save_peft(tmp_path / "copy", decoder.arch, adapter, config, "base")
    ours, theirs = (_tensors(folder) for folder in (tmp_path / "copy", RECORDED / name))
    theirs.pop("base_model.model.lm_head.base_layer.weight", None)
    assert ours.keys() == theirs.keys()
    for tensor in ours:
        np.testing.assert_array_equal(ours[tensor], theirs[tensor])
    written, expected = (
        json.loads((f / "adapter_config.json").read_text()) for f in (tmp_path / "copy", RECORDED / name)
    )
    written["target_modules"], expected["target_modules"] = (
        sorted(written["target_modules"]),
        sorted(expected["target_modules"]),
    )
    assert written.items() <= expected.items()


def test_targets_name_exactly_what_carries_weights(base, tmp_path):
    decoder, params = base
    config = LoRAConfig(rank=2, targets=("layers.*.attn.q_proj", "layers.0.mlp.up_proj", "embed"))
    adapter = LoRA(config, decoder.arch).split(params, jax.random.key(0)).params
    save_peft(tmp_path, decoder.arch, adapter, config, "base")
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == ["embed_tokens", "model.layers.0.mlp.up_proj", "q_proj"]
    modules = {name.removeprefix("base_model.model.model.").rsplit(".lora_")[0] for name in _tensors(tmp_path)}
    assert modules == {"embed_tokens", "layers.0.mlp.up_proj", "layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"}
    again, read = load_peft(tmp_path, decoder.arch)
    assert read.targets == ("embed", "layers.*.attn.q_proj", "layers.0.mlp.up_proj")
    kept = layout.unstack(decoder.arch, again)
    for name, array in layout.unstack(decoder.arch, adapter).items():
        real = name != "layers.1.mlp.up_proj.lora_a"
        np.testing.assert_array_equal(kept[name], array if real else np.zeros_like(array))


def _break_config(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "holds no adapter_config.json"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "no JSON"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "pickled weights are never loaded"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"12345678" * 4), "no whole safetensors"),
        (lambda f: _break_config(f, peft_type="IA3"), "'IA3'"),
        (lambda f: _break_config(f, use_dora=True), "use_dora"),
        (lambda f: _break_config(f, r=None), "r is None"),
        (lambda f: _break_config(f, r=7), "this model needs"),
    ],
)
def test_refuses_in_one_sentence(base, tmp_path, damage, message):
    folder = tmp_path / "adapter"
    shutil.copytree(RECORDED / "every_layer", folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_peft(folder, base[0].arch)
    assert "\n" not in str(caught.value)


LIVE = """
import sys, numpy as np, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, tokens, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
assert all(p.abs().sum() > 0 for n, p in model.named_parameters() if "lora_" in n), "an adapter stayed at its start"
np.save(out, model(torch.tensor(np.load(tokens)).long()).logits.detach().numpy())
"""


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_loads_what_we_write(base, tmp_path, rslora):
    for package in ("torch", "peft"):
        pytest.importorskip(package, reason="recorded values are used where torch and peft are not installed")
    decoder, params = base
    config = LoRAConfig(rank=2, alpha=5.0, rslora=rslora, targets=("layers.*.attn.*_proj", "layers.0.mlp.gate_proj"))
    adapter = LoRA(config, decoder.arch).split(params, jax.random.key(0)).params
    adapter = jax.tree.map(lambda p: 0.3 * jax.random.normal(jax.random.key(1), p.shape), adapter)
    adapter["stacks"]["0"]["0"]["mlp"]["gate_proj"] = jax.tree.map(
        lambda p: p.at[1].set(0), adapter["stacks"]["0"]["0"]["mlp"]["gate_proj"]
    )
    save_peft(tmp_path / "adapter", decoder.arch, adapter, config, str(RECORDED / "base"))
    tokens = np.load(RECORDED / "logits.npz")["tokens"]
    np.save(tmp_path / "tokens.npy", tokens)
    arguments = [RECORDED / "base", tmp_path / "adapter", tmp_path / "tokens.npy", tmp_path / "logits.npy"]
    subprocess.run([sys.executable, "-c", LIVE, *map(str, arguments)], check=True)
    ours = logits(decoder, params, adapter, config, jnp.array(tokens))
    np.testing.assert_allclose(ours, np.load(tmp_path / "logits.npy"), atol=2e-4)


def _tensors(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")
