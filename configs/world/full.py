"""Full fine-tuning.

    python scripts/train.py --config=configs/world/full.py --workdir=runs/full

What a model of the embedded world learns, and what it forgets, in half a minute on a CPU.
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3)  # what scripts/compare.py sweeps


def get_config() -> TrainConfig:
    config = plain()
    config.model.path = "world:base"  # or world:chat, which has been through a general stage
    config.optimizer.learning_rate = 1e-3
    return config
