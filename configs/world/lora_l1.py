"""LoRA of rank 8 whose factors an L1 penalty makes sparse, as PAFT asks before merging.

python scripts/train.py --config=configs/world/lora_l1.py --workdir=runs/world_lora_l1
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (5e-4, 1e-3, 2e-3, 3e-3, 5e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.model.path = "world:chat"
    config.adapter.kind = "lora"
    config.adapter.lora.rank = 8
    config.adapter.lora.alpha = 16.0
    config.objective.regularizers.l1 = 0.01
    config.objective.regularizers.l1_on = "weights"
    config.objective.regularizers.l1_proximal = True  # else weights only come near zero
    config.optimizer.learning_rate = 3e-3
    return config
