"""SFTMix: confident and unconfident examples mixed, after a reference run of one epoch.

    python scripts/compare.py --cases=full,sftmix --output=runs/compare

The stages before the target run are in WORKDIR/stages.
"""

from pathlib import Path

from jaxsft.config import ModelConfig, ObjectiveConfig, RecipeConfig, ScoreConfig, StageConfig, TrainConfig
from jaxsft.recipes.run import run as run_stages
from jaxsft.training.train import train
from jaxsft.world.recipe import plain

LEARNING_RATES = (6e-4, 1e-3, 2e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.model.path = "world:base"
    config.optimizer.learning_rate = 1e-3
    config.objective.name = "sftmix"
    config.objective.mu = 0.2
    config.data.grouping = "mixup"
    return config


def run(config: TrainConfig, workdir: str) -> str:
    """The reference run and its confidences below the workdir, the target run in the workdir itself."""
    stages = Path(workdir) / "stages"
    reference = {
        "objective": ObjectiveConfig(chunk_size=config.objective.chunk_size),  # plain, whatever the target's fields
        "data.grouping": "example",
        "epochs": 1.0,
        "checkpoint.snapshots": 5,
    }
    recipe = RecipeConfig(
        train=config,
        stages=[
            StageConfig("reference", "train", changes=reference),
            StageConfig("scores", "score", ScoreConfig(ModelConfig("{reference}"), grouping="mixup")),
        ],
    )
    print(run_stages(recipe, str(stages)), flush=True)
    config.data.scores = str(stages / "scores" / "scores.parquet")
    return train(config, workdir)
