"""SpIEL-MA with as many tuned weights as LoRA of rank 8 on the same maps.

python scripts/train.py --config=configs/world/spiel_ma.py --workdir=runs/spiel_ma
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 2e-2, 3e-2)


def get_config() -> TrainConfig:
    config = plain()
    config.adapter.kind = "spiel"
    config.adapter.spiel.variant = "ma"
    config.adapter.spiel.lora_rank = 8
    config.optimizer.name = "sm3"
    config.optimizer.max_grad_norm = 0.0
    config.optimizer.learning_rate = 1e-2
    return config
