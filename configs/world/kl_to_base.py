"""A KL term that holds the predictions on the training data near those of the start.

python scripts/train.py --config=configs/world/kl_to_base.py --workdir=runs/world_kl_to_base
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.model.path = "world:chat"
    config.objective.regularizers.kl_to_base = 0.1
    config.optimizer.learning_rate = 3e-4
    return config
