"""Records what `transformers` computes for a tiny random model of every family, in `golden/<case>/`.

Run by hand, with torch and transformers 5 installed: `python tests/models/make_golden.py`. Each folder holds a
checkpoint as `save_pretrained` writes it (float16, to be small) and `golden.npz`: `tokens` int32 [B, T] and `logits`
float32 [B, T, V], computed in float32 from those very weights.
"""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
LENGTH, WINDOW = 28, 8
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}
LOCAL, GLOBAL = "sliding_attention", "full_attention"

# name -> (class of the config, its fields); each family's own options are on, and depths are no multiple of patterns
CASES = {
    "llama": ("LlamaConfig", {"num_hidden_layers": 3}),
    "llama_linear": ("LlamaConfig", {"num_hidden_layers": 2, "head_dim": 12, "rope_parameters": LINEAR}),
    "llama3": (
        "LlamaConfig",
        {
            "num_hidden_layers": 2,
            "rope_parameters": LLAMA3,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "mistral": ("MistralConfig", {"num_hidden_layers": 3, "head_dim": 12, "sliding_window": WINDOW}),
    "qwen2": (
        "Qwen2Config",
        {"num_hidden_layers": 5, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", {"num_hidden_layers": 3, "head_dim": 12, "tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", {"num_hidden_layers": 2, "head_dim": 12, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2Config",
        {
            "num_hidden_layers": 5,
            "head_dim": 12,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "num_hidden_layers": 7,
            "head_dim": 12,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL],
            "rope_parameters": {
                LOCAL: {"rope_type": "default", "rope_theta": 50.0},
                GLOBAL: {"rope_type": "linear", "rope_theta": 2000.0, "factor": 2.0},
            },
        },
    ),
}


def build(name: str):
    """The case's model in float32 with random weights that float16 holds exactly, norms and biases included."""
    import torch
    import transformers

    kind, fields = CASES[name]
    config = getattr(transformers, kind)(**SIZES | fields, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(sorted(CASES).index(name))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in key:
                value = 0.3 * noise + (0.0 if "gemma" in name else 1.0)
            else:
                value = (0.3 if "bias" in key else 0.15) * noise
            parameter.copy_(value.half().float())
    return model


def tokens() -> np.ndarray:
    """int32 [2, LENGTH]."""
    return np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, LENGTH)).astype(np.int32)


def logits(model, ids: np.ndarray) -> np.ndarray:
    """float32 [B, T, V], from one pass; a second one through the cache must agree."""
    import torch

    ids = torch.tensor(ids, dtype=torch.long)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        first = model(ids[:, :11], use_cache=True)
        parts, cache = [first.logits], first.past_key_values
        for t in range(11, ids.shape[1]):
            step = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            parts.append(step.logits)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)
    return whole.numpy()


def main() -> None:
    for name in CASES:
        model, folder = build(name), GOLDEN / name
        np.savez_compressed(_made(folder) / "golden.npz", tokens=tokens(), logits=logits(model, tokens()))
        model.half().save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        print(name, sum(file.stat().st_size for file in folder.iterdir()), "bytes")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
