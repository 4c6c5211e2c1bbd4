"""Full fine-tuning with a mean over examples.

    python scripts/train.py --config=configs/world/example_mean.py --workdir=runs/world_example_mean

What MinorSFT is at beta = 0, and so the plain run that it is to be compared with.
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-4, 3e-4, 6e-4, 1e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.model.path = "world:chat"
    config.objective.reduction = "example_mean"
    config.optimizer.learning_rate = 3e-4
    return config
