"""LoRAMoE: routed low-rank experts on the feed-forward maps of a frozen base.

    python scripts/train.py --config=configs/loramoe.py --workdir=runs/loramoe \
        --config.model.path=MODEL_FOLDER --config.data.path=conversations.jsonl

Half of the experts are for questions on the world's knowledge, half for everything else; a constraint balances each
half, and tilts the two apart by the type of each example.
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.path = ""
    # What you will change: the data, and which of its records ask for knowledge. Their `task_type` decides (map another
    # field to it by data.fields), or their `source` with types.by. Type 1 is what the first half of the experts is for,
    # 0 the second; `other` is the type of all tags that `of` does not name, -1 for none.
    config.data.path = ""
    config.data.types.by = "task_type"
    config.data.types.of = {}  # such as {"closed_qa": 1, "open_qa": 1}
    config.data.types.other = -1  # then 0

    config.adapter.kind = "loramoe"
    config.adapter.loramoe.experts = 6
    config.adapter.loramoe.rank = 4
    config.adapter.loramoe.alpha = 32.0
    config.adapter.loramoe.dropout = 0.05
    config.adapter.loramoe.targets = ("layers.*.mlp.*_proj",)
    config.adapter.loramoe.delta = 0.1
    config.adapter.loramoe.beta = 0.1

    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_ratio = 0.03
    config.epochs = 1.0
    config.batch_size = 16
    config.checkpoint.every = 200
    config.eval.every = 100
    return config
