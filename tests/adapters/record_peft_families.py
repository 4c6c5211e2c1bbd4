"""Makes tests/adapters/recorded_families: for every family what `peft` computes of adapters that it wrote, and of ours.

The bases are those of tests/models/golden. For each family there are two adapters: `theirs`, which peft made and saved,
and `ours`, which `save_peft` wrote; of both the logits and greedy tokens as `peft` computes them, in float32.

Run with this package, torch and peft installed: python tests/adapters/record_peft_families.py [FAMILY ...]
"""

import shutil
import sys
from pathlib import Path

import jax
import numpy as np

from jaxsft.adapters.lora import LoRA
from jaxsft.adapters.peft import save_peft
from jaxsft.config import LoRAConfig
from jaxsft.models.checkpoint import load_architecture
from jaxsft.models.decoder import Decoder
from tests.models.make_golden import GOLDEN

FOLDER = Path(__file__).parent / "recorded_families"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
PROMPT, NEW = 7, 8
# What peft is asked for; of mixed ranks and alphas only where it says so.
THEIRS = {
    "llama": {"rank_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 1}, "alpha_pattern": {"v_proj": 9}},
    "qwen3": {"rank_pattern": {"^model.layers.0.self_attn.o_proj": 4}, "use_rslora": True},
    "gemma2": {"use_rslora": True},
}
OURS = LoRAConfig(rank=2, alpha=3.0, targets=("layers.*.attn.*_proj", "layers.[02].mlp.*_proj"))


def config(family: str) -> LoRAConfig:
    """Ours; every second family with rsLoRA."""
    return LoRAConfig(OURS.rank, OURS.alpha, rslora=FAMILIES.index(family) % 2 == 1, targets=OURS.targets)


def our_adapter(family: str) -> dict:
    """The arrays of our adapter, drawn on the host, zero in layers that are not targeted."""
    arch = load_architecture(GOLDEN / family)
    method = LoRA(config(family), arch)
    shapes = jax.eval_shape(lambda base: method.split(base, jax.random.key(0)), Decoder(arch).abstract_params()).params
    rng = np.random.default_rng(FAMILIES.index(family))
    noise = jax.tree.map(lambda s: (0.2 * rng.normal(size=s.shape)).astype(np.float16).astype(np.float32), shapes)
    mask = method.update_mask(noise)
    return noise if mask is None else jax.tree.map(lambda x, m: x * np.asarray(m, np.float32), noise, mask)


def tokens() -> np.ndarray:
    """int32 [2, 12]."""
    return np.random.default_rng(1).integers(1, 96, (2, 12)).astype(np.int32)


def main() -> None:
    """Writes the folder; the seeds are fixed."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def base(family: str):
        options = {"dtype": torch.float32, "attn_implementation": "eager"}
        return AutoModelForCausalLM.from_pretrained(GOLDEN / family, **options).eval()

    def computed(model) -> dict[str, np.ndarray]:
        ids = torch.tensor(tokens()).long()
        with torch.no_grad():
            found = {"logits": model(ids, use_cache=False).logits.numpy()}
            ids = ids[:, :PROMPT]
            for _ in range(NEW):
                ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
        return found | {"greedy": ids[:, PROMPT:].numpy().astype(np.int32)}

    for family in sys.argv[1:] or FAMILIES:
        folder = FOLDER / family
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(FAMILIES.index(family))
        maps = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        fields = {"r": 2, "lora_alpha": 5, "target_modules": maps, "task_type": "CAUSAL_LM"} | THEIRS.get(family, {})
        made = get_peft_model(base(family), LoraConfig(**fields))
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2).data.copy_(parameter.data.half().float())
        made.base_model.peft_config["default"].base_model_name_or_path = "base"
        made.save_pretrained(folder / "theirs")
        (folder / "theirs" / "README.md").unlink()
        arch = load_architecture(GOLDEN / family)
        save_peft(folder / "ours", arch, our_adapter(family), config(family), "base")
        arrays = {}
        for name in ("theirs", "ours"):
            read = computed(PeftModel.from_pretrained(base(family), folder / name).eval())
            arrays |= {f"{name}_{what}": values for what, values in read.items()}
        arrays["base_logits"] = computed(base(family))["logits"]
        np.savez_compressed(folder / "computed.npz", **arrays)
        shutil.rmtree(folder / "ours")  # it is written again by the test that holds it to these numbers
        print(family, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()), "bytes")


if __name__ == "__main__":
    main()
