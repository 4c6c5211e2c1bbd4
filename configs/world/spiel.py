"""SpIEL-AG with as many tuned weights as LoRA of rank 8 on the same maps.

python scripts/train.py --config=configs/world/spiel.py --workdir=runs/spiel
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-3, 3e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.adapter.kind = "spiel"
    config.adapter.spiel.lora_rank = 8
    config.optimizer.max_grad_norm = 0.0
    config.optimizer.learning_rate = 2e-3
    return config
