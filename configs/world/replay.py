"""Replay: pretraining text beside the conversations, one record for every ten.

    python scripts/train.py --config=configs/world/replay.py --workdir=runs/world_replay

Nothing but a second source: it needs data of what the model is to keep, which most users do not have.
"""

from jaxsft.config import SourceConfig, TrainConfig
from jaxsft.world.recipe import ROWS, plain

LEARNING_RATES = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3)
REPLAYED = ROWS // 10


def get_config() -> TrainConfig:
    config = plain()
    config.model.path = "world:chat"
    config.data.path = config.data.rows = ""
    config.data.sources = [
        SourceConfig(path="world:train", rows=f":{ROWS}"),
        SourceConfig(path="world:replay", rows=f":{REPLAYED}"),
    ]
    config.optimizer.learning_rate = 3e-4
    return config
