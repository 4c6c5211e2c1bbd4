"""The families of decoders, and Hugging Face's `config.json` in and out.

Two dialects of `config.json` are in use: `rope_theta`, `rope_scaling`, `torch_dtype` (transformers 4) and
`rope_parameters`, `dtype` (transformers 5). Both are read, and both are written at once.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jaxsft.errors import UserError
from jaxsft.models.architecture import Architecture, LayerKind, Rope
from jaxsft.validation import did_you_mean


@dataclasses.dataclass(frozen=True)
class Family:
    """One family: its names, what its layers have, and what a missing field of `config.json` means."""

    model_type: str
    class_name: str
    windows: str = "none"  # "none", "all" layers, "upper" layers, or "pattern" (local ones, then a global one)
    qkv_bias: bool | None = False  # None: as `attention_bias` says
    qk_norm: bool = False
    post_norms: bool = False
    gemma: bool = False  # norms scale by 1 + w, embeddings by sqrt(width)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_COMMON = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 2048, "rope_theta": 1e4}
_GEMMA = _COMMON | {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "head_dim": 256}
_QWEN = {"max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA3 = {"query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 6, "rope_theta": 1e6}
_GEMMA3 |= {"rope_local_base_freq": 1e4, "max_position_embeddings": 131072, "vocab_size": 262208}
_GEMMA3 |= {"num_attention_heads": 8, "num_key_value_heads": 4}
_GEMMA2 = {"query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 2}
_GEMMA2 |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "max_position_embeddings": 8192}

FAMILIES: dict[str, Family] = {
    f.model_type: f
    for f in (
        Family("llama", "LlamaForCausalLM", qkv_bias=None, defaults=_COMMON),
        Family("mistral", "MistralForCausalLM", windows="all", defaults=_COMMON | {"sliding_window": 4096}),
        Family("qwen2", "Qwen2ForCausalLM", windows="upper", qkv_bias=True, defaults=_COMMON | _QWEN),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            windows="upper",
            qkv_bias=None,
            qk_norm=True,
            defaults=_COMMON | _QWEN | {"head_dim": 128},
        ),
        Family(
            "gemma",
            "GemmaForCausalLM",
            qkv_bias=None,
            gemma=True,
            defaults=_GEMMA | {"max_position_embeddings": 8192},
        ),
        Family(
            "gemma2",
            "Gemma2ForCausalLM",
            windows="pattern",
            qkv_bias=None,
            post_norms=True,
            gemma=True,
            defaults=_GEMMA | _GEMMA2,
        ),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            windows="pattern",
            qkv_bias=None,
            qk_norm=True,
            post_norms=True,
            gemma=True,
            defaults=_GEMMA | _GEMMA3,
        ),
    )
}
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
# A model with Post-LN layers goes by a name of its own, lest transformers take it for the Pre-LN model of its family.
MIX_LN = "jaxsft_mix_ln"
MIX_LN_CLASS, BASE_TYPE, POST_LAYERS = "JaxsftMixLNForCausalLM", "base_model_type", "n_post_layers"


class _Fields:
    """A `config.json` with its family's defaults."""

    def __init__(self, config: Mapping[str, Any], family: Family, where: str):
        self.config, self.family, self.where = config, family, where

    def get(self, name: str) -> Any:
        """The field, or the family's default where it is absent (null is a value: it turns things off)."""
        return self.config.get(name, self.family.defaults.get(name))

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self.get(name)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{self.where} has no {name}; a {self.family.model_type} model needs it.")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{self.where}: {name} is {value!r}; it must be a positive integer.")
        return value

    def number(self, name: str) -> float | None:
        """A number or None."""
        value = self.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{self.where}: {name} is {value!r}; it must be a number.")
        return value if value is None else float(value)

    def flag(self, name: str) -> bool:
        """True or false; absent is false."""
        value = self.get(name)
        if value not in (None, False, True):
            raise UserError(f"{self.where}: {name} is {value!r}; it must be true or false.")
        return bool(value)


def read(config: Mapping[str, Any], where: str) -> Architecture:
    """See `Architecture.from_hf`."""
    config = _text_part(config)
    if config.get("model_type") == MIX_LN:
        return _read_mix_ln(config, where)
    name = config.get("model_type")
    if config.get(POST_LAYERS):
        raise UserError(
            f"{where}: {POST_LAYERS} is {config[POST_LAYERS]!r}, but model_type is {name!r}, whose layers are Pre-LN; "
            f"a model trained with Post-LN layers has the model_type {MIX_LN!r} and the {BASE_TYPE} {name!r}."
        )
    if name not in FAMILIES:
        raise UserError(
            f"{where}: model_type is {name!r}, no known architecture{did_you_mean(str(name), FAMILIES) or '.'} "
            f"Known are {', '.join(FAMILIES)}."
        )
    family = FAMILIES[name]
    fields = _Fields(config, family, where)
    _refuse_unsupported(fields)
    embed_dim, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_kv_heads = fields.size("num_key_value_heads", num_heads)
    head_dim = fields.size("head_dim", embed_dim // num_heads)
    if num_heads % num_kv_heads:
        raise UserError(f"{where}: {num_kv_heads} num_key_value_heads do not divide {num_heads} num_attention_heads.")
    if head_dim % 2:
        raise UserError(f"{where}: head_dim is {head_dim}; rotary positions need an even one.")
    any_bias = fields.flag("attention_bias")
    qkv_bias = any_bias if family.qkv_bias is None else family.qkv_bias
    return Architecture(
        family=name,
        vocab_size=fields.size("vocab_size"),
        embed_dim=embed_dim,
        mlp_dim=fields.size("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        layers=_layers(fields),
        activation=_activation(fields),
        norm_eps=fields.number("rms_norm_eps"),
        unit_offset=family.gemma,
        qkv_bias=qkv_bias,
        o_bias=any_bias and family.qkv_bias is None,
        mlp_bias=name == "llama" and fields.flag("mlp_bias"),
        qk_norm=family.qk_norm,
        post_norms=family.post_norms,
        attn_scale=(fields.number("query_pre_attn_scalar") or head_dim) ** -0.5,
        attn_soft_cap=fields.number("attn_logit_softcapping"),
        final_soft_cap=fields.number("final_logit_softcapping"),
        embed_scale=embed_dim**0.5 if family.gemma else 1.0,
        tied=fields.flag("tie_word_embeddings"),
        max_positions=fields.size("max_position_embeddings"),
        init_std=fields.number("initializer_range") or 0.02,
        source=json.dumps(dict(config), sort_keys=True),
    )


def _read_mix_ln(config: Mapping[str, Any], where: str) -> Architecture:
    count = config.get(POST_LAYERS)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"{where}: {POST_LAYERS} is {count!r}; a {MIX_LN} model needs at least one Post-LN layer.")
    plain = {name: value for name, value in config.items() if name not in (BASE_TYPE, POST_LAYERS)}
    base = read(plain | {"model_type": config.get(BASE_TYPE)}, where)
    return base.with_post_layers(count, f"{where}: {POST_LAYERS}")


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model of a multimodal Gemma 3; any other config as it is."""
    if config.get("model_type") != "gemma3" or "text_config" not in config:
        return config
    shared = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "tie_word_embeddings")
    outer = {k: config[k] for k in shared if k in config}
    return outer | dict(config["text_config"]) | {"model_type": "gemma3_text"}


def _refuse_unsupported(fields: _Fields) -> None:
    if fields.get("quantization_config"):
        raise UserError(f"{fields.where}: quantization_config is set; give the model's unquantised weights.")
    if fields.get("use_bidirectional_attention"):
        raise UserError(f"{fields.where}: use_bidirectional_attention is set; only causal decoders are supported.")
    if fields.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UserError(f"{fields.where}: partial_rotary_factor is set; only whole-head rotation is supported.")


def _activation(fields: _Fields) -> str:
    name = fields.get("hidden_activation") or fields.get("hidden_act") or "silu"
    if name not in ACTIVATIONS:
        raise UserError(f"{fields.where}: the activation {name!r} is unknown; known are {', '.join(ACTIVATIONS)}.")
    # Gemma's first releases say "gelu" and mean its tanh approximation, with which they were trained.
    return "gelu_tanh" if fields.family.gemma and name == "gelu" else ACTIVATIONS[name]


def _layers(fields: _Fields) -> tuple[LayerKind, ...]:
    types = _layer_types(fields)
    window = fields.size("sliding_window") if LOCAL in types else None
    kinds = {GLOBAL: LayerKind(None, _rope(fields, GLOBAL))}
    if LOCAL in types:
        kinds[LOCAL] = LayerKind(window, _rope(fields, LOCAL))
    return tuple(kinds[t] for t in types)


def _layer_types(fields: _Fields) -> list[str]:
    depth, style = fields.size("num_hidden_layers"), fields.family.windows
    on = style == "pattern" or fields.flag("use_sliding_window") or style == "all"
    if style == "none" or not on or fields.get("sliding_window") is None:
        return [GLOBAL] * depth
    if style == "all":
        return [LOCAL] * depth
    types = fields.get("layer_types")
    if types is None and style == "upper":
        first = fields.get("max_window_layers")
        types = [GLOBAL if i < first else LOCAL for i in range(depth)]
    elif types is None:
        period = fields.size("sliding_window_pattern")
        types = [LOCAL if (i + 1) % period else GLOBAL for i in range(depth)]
    if len(types) != depth:
        raise UserError(f"{fields.where}: layer_types has {len(types)} entries for {depth} num_hidden_layers.")
    for kind in types:
        if kind not in (LOCAL, GLOBAL):
            raise UserError(f"{fields.where}: layer_types holds {kind!r}; known are {LOCAL} and {GLOBAL}.")
    return list(types)


def _rope(fields: _Fields, layer_type: str) -> Rope:
    two = "rope_local_base_freq" in fields.family.defaults  # Gemma 3's local layers have frequencies of their own
    base = "rope_local_base_freq" if two and layer_type == LOCAL else "rope_theta"
    found = fields.get("rope_parameters") or {}
    if LOCAL in found or GLOBAL in found:
        found = found.get(layer_type) or {}
    elif two and layer_type == LOCAL:
        found = {}
    if not (two and layer_type == LOCAL):
        found = dict(found) | dict(fields.get("rope_scaling") or {})
    theta = found.get("rope_theta", fields.number(base))
    kind = found.get("rope_type", found.get("type", "default"))
    if found.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{fields.where}: partial_rotary_factor is set; only whole-head rotation is supported.")
    try:
        if kind == "default":
            return Rope(float(theta))
        if kind == "linear":
            return Rope(float(theta), kind, float(found["factor"]))
        if kind == "llama3":
            original = found.get("original_max_position_embeddings") or fields.size("max_position_embeddings")
            low, high = float(found["low_freq_factor"]), float(found["high_freq_factor"])
            return Rope(float(theta), kind, float(found["factor"]), low, high, int(original))
    except KeyError as missing:
        raise UserError(f"{fields.where}: the rope parameters of type {kind!r} have no {missing}.") from None
    raise UserError(f"{fields.where}: rope_type is {kind!r}; known are default, linear and llama3.")


def write(arch: Architecture, dtype: str) -> dict[str, Any]:
    """See `Architecture.to_hf`."""
    family = FAMILIES[arch.family]
    activation = {v: k for k, v in reversed(ACTIVATIONS.items())}[arch.activation]
    fields = json.loads(arch.source)
    fields |= {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.embed_dim,
        "intermediate_size": arch.mlp_dim,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "head_dim": arch.head_dim,
        "hidden_act": activation,
        "rms_norm_eps": arch.norm_eps,
        "tie_word_embeddings": arch.tied,
        "max_position_embeddings": arch.max_positions,
        "initializer_range": arch.init_std,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if family.gemma:
        fields["hidden_activation"] = activation
    if family.qkv_bias is None:
        fields["attention_bias"] = arch.qkv_bias
    if family.windows in ("upper", "pattern"):
        fields["layer_types"] = [GLOBAL if kind.window is None else LOCAL for kind in arch.layers]
    if family.windows != "none":
        windows = [kind.window for kind in arch.layers if kind.window is not None]
        fields["sliding_window"] = windows[0] if windows else fields.get("sliding_window")
        if family.windows == "all" and not windows:
            fields["sliding_window"] = None
    if family.post_norms:
        fields |= {"query_pre_attn_scalar": _exact(arch.attn_scale**-2)}
        fields |= {"attn_logit_softcapping": arch.attn_soft_cap, "final_logit_softcapping": arch.final_soft_cap}
    if arch.n_post_layers:
        fields |= {"architectures": [MIX_LN_CLASS], "model_type": MIX_LN}
        fields |= {BASE_TYPE: family.model_type, POST_LAYERS: arch.n_post_layers}
    return fields | _write_rope(arch, "rope_local_base_freq" in family.defaults)


def _write_rope(arch: Architecture, two: bool) -> dict[str, Any]:
    parameters = lambda rope: {"rope_theta": rope.theta, **rope.scaling()}
    local = next((k.rope for k in arch.layers if k.window is not None), None)
    whole = next((k.rope for k in arch.layers if k.window is None), None)
    main = whole or local
    old = {"rope_theta": main.theta, "rope_scaling": None if main.kind == "default" else main.scaling()}
    if not two:
        return old | {"rope_parameters": parameters(main)}
    both = {GLOBAL: whole and parameters(whole), LOCAL: local and parameters(local)}
    new = {"rope_parameters": {k: v for k, v in both.items() if v}}
    return old | new | ({"rope_local_base_freq": local.theta} if local else {})


def _exact(value: float) -> int | float:
    """An integer where rounding noise is all that keeps it from being one."""
    return round(value) if abs(value - round(value)) < 1e-6 * abs(value) else value
