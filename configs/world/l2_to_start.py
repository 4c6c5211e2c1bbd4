"""L2-SP: the weights are pulled back to where they started.

python scripts/train.py --config=configs/world/l2_to_start.py --workdir=runs/world_l2_to_start
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.model.path = "world:chat"
    config.objective.regularizers.l2_to_start = 0.01
    config.optimizer.learning_rate = 3e-4
    return config
