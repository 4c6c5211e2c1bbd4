"""QLoRA: low-rank adapters over a base stored in 4 bits, a quarter of the memory of LoRA's frozen weights.

    python scripts/train.py --config=configs/qlora.py --workdir=runs/qlora \
        --config.model.path=MODEL_FOLDER --config.data.path=conversations.jsonl
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.path = ""
    config.data.path = ""

    config.model.quantization = "nf4"  # or "int8": twice the memory, a fifteenth of the error
    config.model.double_quantization = True  # the scales in 8 bits too

    config.adapter.kind = "lora"
    config.adapter.lora.rank = 16
    config.adapter.lora.alpha = 16.0
    config.adapter.lora.dropout = 0.05
    config.adapter.lora.targets = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")

    # The QLoRA paper's own: constant after a warm-up, and gradients clipped hard.
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_ratio = 0.03
    config.optimizer.max_grad_norm = 0.3
    config.epochs = 3.0
    config.batch_size = 16
    config.checkpoint.every = 200
    config.eval.every = 100
    return config
