"""Full fine-tuning on the embedded world: what a model learns, and what it forgets, in half a minute on a CPU.

    python scripts/train.py --config=configs/world/sft.py --workdir=runs/world
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.path = "world:base"  # or world:chat, which has been through a general stage
    config.model.remat = "none"
    config.data.path = "world:train"
    config.data.rows = ":3000"
    config.data.max_length = 64
    config.data.max_examples_per_row = 16
    config.eval.path = "world:validation"

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.b2 = 0.98
    config.batch_size = 4
    config.epochs = 4.0
    config.checkpoint.every = 0
    return config
