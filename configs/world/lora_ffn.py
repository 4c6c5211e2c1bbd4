"""LoRA of rank 15 on the feed-forward maps alone: the parameters of configs/world/loramoe.py without routing.

python scripts/train.py --config=configs/world/lora_ffn.py --workdir=runs/world_lora_ffn

It prints 47,520 trained parameters.
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-3, 3e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.adapter.kind = "lora"
    config.adapter.lora.rank = 15
    config.adapter.lora.alpha = 30.0
    config.adapter.lora.targets = ("layers.*.mlp.*_proj",)
    config.optimizer.learning_rate = 3e-3
    return config
