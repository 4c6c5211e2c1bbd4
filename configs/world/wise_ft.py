"""WiSE-FT: the model halfway between the start and full fine-tuning.

python scripts/compare.py --cases=full,wise_ft --output=runs/wise_ft
"""

import shutil
from pathlib import Path

from jaxsft.config import MergeConfig, TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3)
SHARE = 0.5  # of the tuned model


def get_config() -> TrainConfig:
    config = plain()
    config.model.path = "world:chat"
    config.optimizer.learning_rate = 1e-3
    return config


def run(config: TrainConfig, workdir: str) -> Path:
    """Trains in the workdir, and returns the folder of the interpolation in it."""
    from jaxsft.merging.merge import merge  # here, for the file is also read by who only plans
    from jaxsft.training.train import train

    train(config, workdir)
    merged = Path(workdir) / "merged"
    shutil.rmtree(merged, ignore_errors=True)  # of a run that was broken off behind it
    merge(MergeConfig(models=(config.model.path, workdir), weights=(1 - SHARE, SHARE)), merged)
    return merged
