"""Fine-tuning on the examples that need their context most (arXiv:2410.10796).

    python scripts/run.py --config=configs/recipes/context_critical.py --workdir=runs/critical \
        --config.train.model.path=MODEL_FOLDER --config.train.data.path=alpaca.json \
        --config.stages[0].config.model.path=MODEL_FOLDER --config.stages[0].config.data.path=alpaca.json

The base scores every answer with its context (the field `input` of Alpaca's records) and without; half of the data is
trained on. The model is in runs/critical/target.
"""

from jaxsft.config import RecipeConfig, ScoreConfig, StageConfig, TrainConfig


def get_config() -> RecipeConfig:
    train = TrainConfig()
    train.model.path = ""
    train.data.path = ""
    train.optimizer.learning_rate = 1e-5
    train.optimizer.warmup_ratio = 0.03
    train.epochs = 3.0
    train.batch_size = 8
    target = {
        "data.scores": "{scores}/scores.parquet",
        "data.score": "loss_without_context",  # the paper's; "context_gain" leaves out what is merely hard
        "data.keep": 0.5,
        "checkpoint.every": 200,
    }
    return RecipeConfig(
        train=train,
        stages=[
            StageConfig("scores", "score", ScoreConfig(context="input")),
            StageConfig("target", "train", changes=target),
        ],
    )
