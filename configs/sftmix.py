"""SFTMix (arXiv:2410.05248), the target run alone, with a table of confidences that is there already.

    python scripts/train.py --config=configs/sftmix.py --workdir=runs/sftmix \
        --config.model.path=MODEL_FOLDER --config.data.path=conversations.jsonl --config.data.scores=scores.parquet

`configs/recipes/sftmix.py` makes the table too.
"""

from jaxsft.config import TrainConfig


def get_config() -> TrainConfig:
    config = TrainConfig()
    config.model.path = ""
    config.data.path = ""
    config.data.scores = ""  # of these very examples; refused where they are others
    config.data.grouping = "mixup"
    config.data.max_length = 2048  # of a row, which must hold a pair: an example is cut to half of it

    config.objective.name = "sftmix"
    config.objective.mu = 0.2  # the paper's; 0 is plain fine-tuning on the same pairs
    config.objective.mix_alpha = 0.5  # the paper's: most mixtures lie near one of the two examples

    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_ratio = 0.1
    config.optimizer.weight_decay = 0.1
    config.epochs = 3.0
    config.batch_size = 8
    config.checkpoint.every = 200
    return config
