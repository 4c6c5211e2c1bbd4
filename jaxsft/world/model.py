"""The world's model before it has learnt anything: its sizes and its tokenizer, as a Hugging Face folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsft.world import vocabulary


def save_untrained(folder: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Writes `config.json` and the tokenizer of a Llama of 0.4 million parameters; there are no weights.

    Args:
      folder: made if absent.
      changes: fields of `config.json` that are to be others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary.save_tokenizer(folder)
    ids = vocabulary.token_ids()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(ids),
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 24,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,  # about 1 / sqrt(hidden_size): at the usual 0.02 so small a model hardly starts
        "bos_token_id": ids["<bos>"],
        "eos_token_id": ids["<eos>"],
        "pad_token_id": ids["<pad>"],
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config | dict(changes or {}), indent=2) + "\n")
