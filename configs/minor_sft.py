"""MinorSFT: examples on which the model has gained already pull less, so that it drifts less from where it started.

    python scripts/train.py --config=configs/minor_sft.py --workdir=runs/minor_sft \
        --config.model.path=CHAT_MODEL_FOLDER --config.data.path=conversations.jsonl

The start scores the data once before the first step; no second model is held in memory. See docs/methods/minor_sft.md.
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.path = ""  # a chat model: its own answers are what the drift is measured from
    config.data.path = ""
    config.data.max_length = 1024

    config.objective.name = "minor_sft"
    # An example's pull falls to 0.54 of plain SFT's when its answer has gained 1 / beta nats. With answers of about 100
    # tokens, 0.1 lets each token gain a tenth of a nat. Try a third and three times that.
    config.objective.beta = 0.1
    config.objective.ratio = "sum"  # the paper's; "mean" where answers differ much in length

    config.optimizer.learning_rate = 2e-5  # one to three times that of plain SFT, since examples pull less and less
    config.epochs = 3.0
    config.batch_size = 16
    config.checkpoint.every = 200
    config.eval.every = 100
    return config
