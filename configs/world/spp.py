"""SPP of rank 8 on every linear map, over a base that is not pruned: what scaling weights alone can learn.

python scripts/train.py --config=configs/world/spp.py --workdir=runs/spp
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (3e-3, 1e-2, 2e-2, 4e-2)


def get_config() -> TrainConfig:
    config = plain()
    config.adapter.kind = "spp"
    config.adapter.spp.rank = 8
    config.optimizer.learning_rate = 1e-2
    return config
