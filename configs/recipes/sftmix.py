"""SFTMix (arXiv:2410.05248): a reference run, its confidence in every example, and the target run that mixes them.

    python scripts/run.py --config=configs/recipes/sftmix.py --workdir=runs/sftmix \
        --config.train.model.path=MODEL_FOLDER --config.train.data.path=conversations.jsonl

What both runs share is `config.train`; the model is in runs/sftmix/target.
"""

from jaxsft.config import ModelConfig, RecipeConfig, ScoreConfig, StageConfig, TrainConfig


def get_config() -> RecipeConfig:
    train = TrainConfig()
    train.model.path = ""
    train.data.path = ""
    train.data.max_length = 2048  # of a row, which in the target run must hold a pair: an example is cut to half of it

    train.optimizer.learning_rate = 1e-5
    train.optimizer.warmup_ratio = 0.1
    train.optimizer.weight_decay = 0.1
    train.epochs = 3.0
    train.batch_size = 8  # rows

    reference = {
        "epochs": 1.0,  # one pass shows which examples come easily
        "checkpoint.snapshots": 5,  # those that are asked; a pass of scoring for each
        "checkpoint.every": 200,
    }
    target = {
        "objective.name": "sftmix",
        "objective.mu": 0.2,
        "data.grouping": "mixup",
        "data.scores": "{scores}/scores.parquet",
        "checkpoint.every": 200,
    }
    return RecipeConfig(
        train=train,
        stages=[
            StageConfig("reference", "train", changes=reference),
            StageConfig("scores", "score", ScoreConfig(model=ModelConfig("{reference}"), grouping="mixup")),
            StageConfig("target", "train", changes=target),
        ],
    )
