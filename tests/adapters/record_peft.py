"""Makes tests/adapters/recorded: a tiny Llama, two adapters written by `peft`, and the logits that `peft` computes.

Run with torch, transformers and peft installed: python tests/adapters/record_peft.py
"""

import os
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parent / "recorded"
ADAPTERS = {
    "every_layer": LoraConfig(
        r=3, lora_alpha=8, target_modules=["q_proj", "o_proj", "down_proj", "lm_head"], task_type="CAUSAL_LM"
    ),
    "one_layer_rslora": LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["model.layers.1.self_attn.v_proj"], task_type="CAUSAL_LM"
    ),
}


def main() -> None:
    """Writes the folder; the seeds are fixed."""
    FOLDER.mkdir(exist_ok=True)
    os.chdir(FOLDER)  # peft records the path of the base
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained("base")
    tokens = torch.randint(0, 48, (2, 11))
    arrays = {"tokens": tokens.numpy().astype(np.int32)}
    for name, lora in ADAPTERS.items():
        model = get_peft_model(LlamaForCausalLM.from_pretrained("base"), lora)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(name)
        Path(name, "README.md").unlink()
        model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained("base"), name)
        arrays[name] = model.double()(tokens).logits.detach().numpy()
    np.savez_compressed("logits.npz", **arrays)


if __name__ == "__main__":
    main()
