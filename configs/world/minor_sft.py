"""MinorSFT.

    python scripts/train.py --config=configs/world/minor_sft.py --workdir=runs/world_minor_sft

From the chat start, as in the paper; answers have two tokens, so beta is larger than for real ones.
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-4, 3e-4, 6e-4, 1e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.model.path = "world:chat"
    config.objective.name = "minor_sft"
    config.objective.beta = 0.3
    config.optimizer.learning_rate = 3e-4
    return config
