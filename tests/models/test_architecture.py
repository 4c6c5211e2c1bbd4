"""Reading and writing `config.json`, and the grouping of layers into stacks."""

import pytest

from jaxsft.errors import UserError
from jaxsft.models.architecture import Architecture, Rope

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def read(family: str, **fields) -> Architecture:
    return Architecture.from_hf({"model_type": family} | SIZES | fields)


def windows(arch: Architecture) -> list[int | None]:
    return [kind.window for kind in arch.layers]


def test_defaults_are_those_of_the_families():
    llama = read("llama")
    assert (llama.tied, llama.head_dim, llama.activation, llama.layers[0].rope) == (False, 8, "silu", Rope(1e4))
    assert windows(read("mistral")) == [4096] * 4
    assert windows(read("mistral", sliding_window=None)) == [None] * 4
    assert read("qwen2").qkv_bias and not read("qwen2").o_bias
    assert windows(read("qwen2", use_sliding_window=False, sliding_window=8, max_window_layers=1)) == [None] * 4
    assert windows(read("qwen3", use_sliding_window=True, sliding_window=8, max_window_layers=1)) == [None, 8, 8, 8]
    assert read("qwen3").head_dim == 128 and read("qwen3").qk_norm
    gemma = read("gemma", hidden_act="gelu")
    assert (gemma.tied, gemma.activation, gemma.embed_scale) == (True, "gelu_tanh", 32**0.5)
    gemma2 = read("gemma2")
    assert (gemma2.attn_soft_cap, gemma2.final_soft_cap, gemma2.attn_scale) == (50.0, 30.0, 1 / 16)
    assert windows(gemma2) == [4096, None, 4096, None]
    gemma3 = read("gemma3_text", num_hidden_layers=7)
    assert windows(gemma3) == [4096] * 5 + [None, 4096]
    assert (gemma3.layers[0].rope.theta, gemma3.layers[5].rope.theta) == (1e4, 1e6)
    assert gemma3.final_soft_cap is None


def test_text_part_of_a_multimodal_config():
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "sliding_window": 16}
    text["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    arch = Architecture.from_hf({"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]})
    assert (arch.family, arch.num_heads, arch.num_kv_heads, arch.vocab_size) == ("gemma3_text", 8, 4, 262208)
    assert arch.layers[5].rope == Rope(1e6, "linear", 8.0) and arch.layers[0].rope == Rope(1e4)
    assert arch.to_hf()["eos_token_id"] == [1, 106] and arch.to_hf()["architectures"] == ["Gemma3ForCausalLM"]


def test_fields_that_mean_nothing_here_survive():
    assert read("llama", pretraining_tp=1, eos_token_id=[2, 3], my_field={"a": 1}).to_hf()["my_field"] == {"a": 1}


@pytest.mark.parametrize(
    ("family", "fields", "stacks"),
    [
        ("llama", {"num_hidden_layers": 32}, [(1, 32)]),
        ("gemma2", {"num_hidden_layers": 26}, [(2, 13)]),
        ("gemma2", {"num_hidden_layers": 5}, [(2, 2), (1, 1)]),
        ("gemma3_text", {"num_hidden_layers": 26}, [(6, 4), (1, 2)]),
        ("gemma3_text", {"num_hidden_layers": 62}, [(6, 10), (1, 2)]),
        (
            "qwen2",
            {"num_hidden_layers": 28, "use_sliding_window": True, "max_window_layers": 21},
            [(1, 21), (1, 7)],
        ),
    ],
)
def test_layers_form_few_stacks_in_order(family, fields, stacks):
    arch = read(family, **fields)
    assert [(len(s.unit), s.repeats) for s in arch.stacks] == stacks
    indices = [s.layer(u, row) for s in arch.stacks for row in range(s.repeats) for u in range(len(s.unit))]
    assert indices == list(range(arch.num_layers))
    assert [kind for s in arch.stacks for kind in s.unit * s.repeats] == list(arch.layers)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("lama", {}, "model_type is 'lama'.*did you mean 'llama'"),
        ("gpt2", {}, "model_type is 'gpt2'.*Known are llama"),
        ("llama", {"hidden_size": None}, "no hidden_size"),
        ("llama", {"num_hidden_layers": "4"}, "num_hidden_layers is '4'"),
        ("llama", {"hidden_act": "relu"}, "activation 'relu'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "no 'factor'"),
        ("llama", {"num_key_value_heads": 3}, "do not divide"),
        ("llama", {"head_dim": 7}, "head_dim is 7"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"layer_types": ["full_attention"]}, "1 entries for 4"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 4}, "'chunked_attention'"),
    ],
)
def test_what_is_unsupported_is_named(family, fields, message):
    with pytest.raises(UserError, match=message):
        read(family, **fields)
