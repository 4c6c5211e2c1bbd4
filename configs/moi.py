"""Mixture-of-Instructions: a system prompt per domain, and chunks of one conversation per domain (arXiv:2404.18410).

    python scripts/train.py --config=configs/moi.py --workdir=runs/moi \
        --config.model.path=MODEL_FOLDER --config.data.path=conversations.jsonl

See docs/methods/mixture_of_instructions.md.
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()

    # What you will change: the model, the data, and the domains by the records' `task_type` (map another field to it by
    # config.data.fields), or by their source. The domain of the default prompt comes first.
    config.model.path = ""
    config.data.path = ""
    config.data.mixture.by = "task_type"
    config.data.mixture.domains = ("dialogue", "code", "math", "agent")
    config.data.system = "You are a helpful assistant."  # of all others, and of what is held out
    config.data.mixture.system = {
        "code": "You are a programmer.",
        "math": "You are a mathematician.",
        "agent": "You are an agent that can use tools.",
    }

    # A chunk must fit into a row. The baselines: attention_unit "row" (balanced) or "example" (isolated); grouping
    # "example" with attention_unit "row" (packing), or with packing = False (sequence).
    config.data.grouping = "domain"
    config.data.attention_unit = "group"
    config.data.max_length = 8192
    config.data.truncation = "drop"  # chunks that do not fit; "right" cuts their longest members

    # The paper does not give its hyperparameters; these are ours.
    config.optimizer.learning_rate = 1e-5
    config.optimizer.schedule = "cosine"
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.epochs = 3.0
    config.batch_size = 32

    config.checkpoint.every = 200
    config.eval.every = 100
    return config
