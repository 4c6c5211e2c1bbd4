"""NEFTune: noise on the embedded tokens, alpha 1.

python scripts/train.py --config=configs/world/neftune.py --workdir=runs/world_neftune
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.model.path = "world:chat"
    config.objective.regularizers.neftune_alpha = 1.0  # answers are short, and noise goes by 1 / sqrt(L D)
    config.optimizer.learning_rate = 3e-4
    return config
