"""What is exported computes what the model computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.full import Full
from jaxsft.adapters.lora import LoRA
from jaxsft.adapters.method import Parts
from jaxsft.adapters.peft import load_peft
from jaxsft.config import LoRAConfig, ModelConfig
from jaxsft.data.templates import BUILT_IN
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.training.export import export_hf, export_peft
from jaxsft.training.restore import OpenModel, open_model
from tests.tiny import logits_of

CONFIG = ModelConfig(dtype="float32", param_dtype="float32")


@pytest.fixture(scope="module")
def lora(source, mesh):
    """A LoRA run with adapters that are not zero."""
    plain = open_model(str(source), CONFIG, mesh)
    method = LoRA(
        LoRAConfig(rank=4, alpha=8.0, targets=("layers.*.attn.*_proj", "layers.1.mlp.up_proj")), plain.decoder.arch
    )
    parts = method.split(plain.params, jax.random.key(0))
    noise = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(7), p.shape), parts.params)
    mask = method.update_mask(parts.params)
    parts = Parts(jax.tree.map(lambda new, old, m: jnp.where(m, new, old), noise, parts.params, mask), parts.frozen, {})
    params, adapters = method.compose(parts, {})
    tokenizer = load_tokenizer(str(source))
    return OpenModel(plain.decoder, params, adapters, method, parts, tokenizer, "plain", plain.source)


def test_merged_checkpoint_computes_the_same(lora, source, mesh, tmp_path):
    line = export_hf(lora, tmp_path / "out", mesh)
    again = open_model(str(tmp_path / "out"), CONFIG, mesh)
    np.testing.assert_allclose(logits_of(again), logits_of(lora), atol=2e-5)
    assert np.abs(logits_of(again) - logits_of(open_model(str(source), CONFIG, mesh))).max() > 0.01
    assert "float32 checkpoint" in line
    assert again.tokenizer.chat_template == BUILT_IN["plain"]  # others prompt it as it learnt
    assert again.tokenizer.encode("ab").ids == lora.tokenizer.encode("ab").ids


def test_rounding_is_reported(lora, mesh, tmp_path):
    line = export_hf(lora, tmp_path / "out", mesh, "bfloat16")
    again = open_model(str(tmp_path / "out"), CONFIG, mesh)
    text, _, change = line.rpartition(" ")
    assert text.endswith("bfloat16 checkpoint; the largest change of a logit by merging and rounding is")
    assert 1e-4 < float(change) < 0.5
    assert 0.2 < np.abs(logits_of(again) - logits_of(lora)).max() / float(change) < 5  # on other tokens
    for leaf in jax.tree.leaves(again.params):
        np.testing.assert_array_equal(leaf, leaf.astype(jnp.bfloat16).astype(jnp.float32))


def test_peft_folder(lora, source, tmp_path):
    export_peft(lora, tmp_path / "out")
    params, config = load_peft(tmp_path / "out", lora.decoder.arch)
    assert config.targets == ("layers.*.attn.k_proj", "layers.*.attn.o_proj", "layers.*.attn.q_proj",
                              "layers.*.attn.v_proj", "layers.1.mlp.up_proj")  # fmt: skip
    again, adapters = LoRA(config, lora.decoder.arch).compose(Parts(params, {"base": lora.params}, {}), {})
    read = OpenModel(lora.decoder, again, adapters, None, None, lora.tokenizer, "plain", lora.source)
    np.testing.assert_allclose(logits_of(read), logits_of(lora), atol=1e-6)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == BUILT_IN["plain"]


def test_refusals(lora, source, mesh, tmp_path):
    plain = open_model(str(source), CONFIG, mesh)
    with pytest.raises(UserError, match=r"not a LoRA run.*use --format=hf"):
        export_peft(plain, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for export in (lambda: export_hf(lora, tmp_path / "out", mesh), lambda: export_peft(lora, tmp_path / "out")):
        with pytest.raises(UserError, match="not empty"):
            export()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_fully_trained_run_is_itself(source, mesh, tmp_path):
    plain = open_model(str(source), CONFIG, mesh)
    method = Full(plain.decoder.arch)
    parts = method.split(plain.params, jax.random.key(0))
    run = OpenModel(plain.decoder, plain.params, None, method, parts, plain.tokenizer, "auto", plain.source)
    assert export_hf(run, tmp_path / "out", mesh).endswith(" 0")
    np.testing.assert_array_equal(logits_of(open_model(str(tmp_path / "out"), CONFIG, mesh)), logits_of(plain))
