"""LoRAMoE without its constraint: nothing balances the experts.

python scripts/train.py --config=configs/world/loramoe_unbalanced.py --workdir=runs/world_loramoe_unbalanced
"""

import runpy
from pathlib import Path

from jaxsft.config import TrainConfig

LEARNING_RATES = (1e-3, 3e-3)


def get_config() -> TrainConfig:
    config = runpy.run_path(str(Path(__file__).with_name("loramoe.py")))["get_config"]()
    config.adapter.loramoe.beta = 0.0
    return config
