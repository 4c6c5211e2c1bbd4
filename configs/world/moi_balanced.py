"""The rows of configs/world/moi.py without its mask: the second chunk of a row sees the first.

python scripts/train.py --config=configs/world/moi_balanced.py --workdir=runs/world_moi_balanced
"""

from jaxsft.config import TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (3e-4, 6e-4, 1e-3, 2e-3)
PROMPTS = {
    "reverse": "reverse",
    "sort": "sort",
    "add": "sum",
    "compare": "greater",
    "lookup": "number",
    "first": "first",
    "count": "count",
    "max": "greatest",
    "member": "among",
}


def get_config() -> TrainConfig:
    config = plain()
    config.data.grouping = "domain"
    config.data.attention_unit = "row"
    config.data.mixture.domains = ("fact", *PROMPTS)
    config.data.mixture.system = PROMPTS
    config.data.max_length = 304  # two of the longest chunks
    config.data.max_examples_per_row = 20
    config.data.truncation = "drop"
    config.batch_size = 1  # as many conversations as in four rows of the plain recipe
    config.optimizer.learning_rate = 1e-3
    return config
