"""C-RLFT without conditions: the poor source is weighted by 0.1, and looks like the others.

python scripts/train.py --config=configs/world/c_rlft_weights.py --workdir=runs/c_rlft_weights
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (6e-4, 1e-3, 2e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.data.classes.weight = {"expert": 1.0, "volunteer": 1.0, "scraped": 0.1}
    config.optimizer.learning_rate = 1e-3
    return config
