"""LoRA: low-rank adapters on every linear map of a frozen base; a few per cent of the memory of full fine-tuning.

    python scripts/train.py --config=configs/lora.py --workdir=runs/lora \
        --config.model.path=MODEL_FOLDER --config.data.path=conversations.jsonl
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.path = ""
    config.data.path = ""

    config.adapter.kind = "lora"
    config.adapter.lora.rank = 16
    config.adapter.lora.alpha = 32.0
    config.adapter.lora.dropout = 0.0
    config.adapter.lora.targets = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")

    config.optimizer.learning_rate = 2e-4  # about ten times that of full fine-tuning
    config.epochs = 3.0
    config.batch_size = 16
    config.checkpoint.every = 200
    config.eval.every = 100
    return config
