"""LoRAMoE: six routed experts of rank 2 on the feed-forward maps, those for facts balanced against the others.

    python scripts/train.py --config=configs/world/loramoe.py --workdir=runs/world_loramoe

It prints 46,080 trained parameters, routers included; configs/world/lora_ffn.py has 47,520 on the same maps.
"""

from jaxsft.config import TrainConfig
from jaxsft.world import skills
from jaxsft.world.recipe import plain, task

LEARNING_RATES = (1e-3, 3e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.adapter.kind = "loramoe"
    config.adapter.loramoe.experts = 6
    config.adapter.loramoe.rank = 2
    config.adapter.loramoe.alpha = 16.0  # a scale of 8, as the paper's 32 / 4
    config.adapter.loramoe.dropout = 0.0  # as in the other configs of the world
    config.data.types.of = {"fact": 1} | {skill.name: 0 for skill in skills.NARROW}
    config.eval.tasks.append(task("routing", "routing", "world:validation"))
    config.optimizer.learning_rate = 3e-3
    return config
