"""LoRA of rank 8 on every linear map, over a base stored in NF4.

python scripts/train.py --config=configs/world/qlora.py --workdir=runs/qlora
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (5e-4, 1e-3, 2e-3, 3e-3, 5e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.model.quantization = "nf4"
    config.adapter.kind = "lora"
    config.adapter.lora.rank = 8
    config.adapter.lora.alpha = 16.0
    config.optimizer.learning_rate = 3e-3
    return config
