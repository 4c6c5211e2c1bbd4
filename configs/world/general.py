"""The general stage, which makes the world's base model a chat model; `scripts/make_world.py` runs it.

    python scripts/train.py --config=configs/world/general.py --workdir=DIR

Pretraining text is replayed beside the conversations, so that the chat model keeps what the base knew.
"""

from jaxsft.config import SourceConfig, TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.path = "world:base"
    config.model.remat = "none"
    config.data.sources = [SourceConfig(path="world:general"), SourceConfig(path="world:replay", weight=0.3)]
    config.data.max_length = 64
    config.data.max_examples_per_row = 16

    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 20
    config.optimizer.b2 = 0.98
    config.batch_size = 4
    config.epochs = 1.0
    config.checkpoint.every = 0
    return config
