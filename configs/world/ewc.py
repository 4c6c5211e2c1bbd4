"""Elastic weight consolidation: the weights that the pretraining text needs are held, the others are free.

python scripts/train.py --config=configs/world/ewc.py --workdir=runs/world_ewc
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import data, plain

LEARNING_RATES = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.model.path = "world:chat"
    config.objective.regularizers.ewc = 30.0
    config.objective.regularizers.ewc_data = data("world:replay")
    config.objective.regularizers.ewc_examples = 512
    config.optimizer.learning_rate = 3e-4
    return config
