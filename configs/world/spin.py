"""SPIN: after fine-tuning, the model learns to prefer the data's answers to its own; two iterations.

    python scripts/compare.py --cases=full,spin --starts=world:chat --output=runs/spin
    python scripts/compare.py --cases=spin:direct ...      # without the fine-tuning before it

The learning rates are those of the iterations; the fine-tuning before them is the case `full` at SFT_RATE.
"""

import dataclasses
from pathlib import Path

from jaxsft.config import (
    MergeConfig,
    ObjectiveConfig,
    RecipeConfig,
    SourceConfig,
    StageConfig,
    SynthesisConfig,
    TrainConfig,
)
from jaxsft.errors import UserError
from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-5, 3e-5, 1e-4)
SFT_RATE = 3e-4  # where `full` is best from world:chat
ITERATIONS = 2
VARIANTS = ("tuned", "direct")


def get_config(asked: str = "tuned") -> TrainConfig:
    if asked not in VARIANTS:
        raise UserError(f"spin:{asked} is no variant; write one of {', '.join(f'spin:{name}' for name in VARIANTS)}.")
    config = plain()
    config.model.path = "world:chat"
    config.objective.name = "dpo"
    config.objective.beta = 0.1
    config.epochs = 2.0
    return config


def run(config: TrainConfig, workdir: str, asked: str = "tuned") -> Path:
    """All stages in WORKDIR/stages; returns the folder of the last iterate."""
    from jaxsft.recipes.run import run as run_stages  # here, for the file is also read by who only plans

    sft = {
        "objective": ObjectiveConfig(chunk_size=config.objective.chunk_size),
        "optimizer.learning_rate": SFT_RATE,
        "epochs": plain().epochs,
    }
    stages, start = [], config.model.path
    if asked == "tuned":
        stages = [
            StageConfig("sft", "train", changes=sft),
            StageConfig("start", "merge", MergeConfig("linear", ("{sft}",), dtype="float32")),
        ]
        start = "{start}"
    for t in range(ITERATIONS):
        own = SynthesisConfig(method="self_play", temperature=1.0, max_new_tokens=24, batch_size=128)
        own.model.path, own.seed = start, ITERATIONS * config.seed + t
        pairs = [SourceConfig(f"{{pairs_{k}}}/records.jsonl") for k in range(max(t - 1, 0), t + 1)]
        changes = {"model.path": start, "data.grouping": "preference", "data.sources": pairs}
        stages += [
            StageConfig(f"pairs_{t}", "synthesize", own),
            StageConfig(f"run_{t}", "train", changes=changes),
            StageConfig(f"iterate_{t}", "merge", MergeConfig("linear", (f"{{run_{t}}}",), dtype="float32")),
        ]
        start = f"{{iterate_{t}}}"
    recipe = RecipeConfig(train=dataclasses.replace(config), stages=stages)
    print(run_stages(recipe, str(Path(workdir) / "stages")), flush=True)
    return Path(workdir) / "stages" / f"iterate_{ITERATIONS - 1}"
