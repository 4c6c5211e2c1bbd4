"""Direct preference optimisation: of two answers to a prompt the better one is made likelier, against the start model.

    python scripts/train.py --config=configs/dpo.py --workdir=runs/dpo \
        --config.model.path=MODEL_FOLDER --config.data.path=pairs.json

Records have `chosen` and `rejected` answers. Start from a model that answers in the form of the data: fine-tune first.
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.path = ""  # the model that is trained, and that it is held to
    config.data.path = ""
    config.data.grouping = "preference"  # the answers of a pair share a row ...
    config.data.max_length = 2048  # ... so that each has up to half of it

    config.objective.name = "dpo"  # ipo, minor_dpo, hinge; mrpo for several references
    config.objective.beta = 0.1  # smaller lets the model move further from where it started
    config.objective.label_smoothing = 0.0  # the share of pairs that may be labelled the wrong way round
    config.objective.sft_weight = 0.0  # above 0: keeps the chosen answers from becoming unlikely too

    # Much below the rate of fine-tuning; about ten times more with config.adapter.kind = "lora".
    config.optimizer.learning_rate = 5e-7
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_ratio = 0.1
    config.epochs = 1.0
    config.batch_size = 16  # rows, which hold several pairs where these are short

    config.checkpoint.every = 200
    return config
