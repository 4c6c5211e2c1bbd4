"""Pretrains the world's base model from random weights; `scripts/make_world.py` runs it.

    python scripts/train.py --config=configs/world/pretrain.py --config.model.path=FOLDER --workdir=DIR

FOLDER holds `config.json` and the tokenizer.
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.init = "random"
    config.model.remat = "none"
    config.data.path = "world:text"
    config.data.max_length = 64
    config.data.max_examples_per_row = 16

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.01
    config.batch_size = 16
    config.epochs = 6.0
    config.checkpoint.every = 0
    config.log.every = 50
    return config
