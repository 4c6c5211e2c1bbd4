"""C-RLFT without weights: the poor source is told apart in the prompt, and counts like the others.

python scripts/train.py --config=configs/world/c_rlft_conditions.py --workdir=runs/c_rlft_conditions
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (6e-4, 1e-3, 2e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.data.template = "world:conditioned"
    config.data.classes.condition = {"expert": "plus", "volunteer": "plus", "scraped": "minus"}
    config.data.classes.inference = "expert"
    config.optimizer.learning_rate = 1e-3
    return config
