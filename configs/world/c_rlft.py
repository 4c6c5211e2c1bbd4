"""C-RLFT: the poor source is weighted by 0.1 and told apart in the prompt.

    python scripts/train.py --config=configs/world/c_rlft.py --workdir=runs/c_rlft

Conditions must be words of the world: "plus" for the clean sources, "minus" for the poor one.
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (6e-4, 1e-3, 2e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.data.template = "world:conditioned"
    config.data.classes.condition = {"expert": "plus", "volunteer": "plus", "scraped": "minus"}
    config.data.classes.inference = "expert"
    config.data.classes.weight = {"expert": 1.0, "volunteer": 1.0, "scraped": 0.1}
    config.optimizer.learning_rate = 1e-3
    return config
