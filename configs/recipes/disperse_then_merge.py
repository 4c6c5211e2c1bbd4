"""Disperse-Then-Merge (arXiv:2405.13432): the data in four parts, a run on each from one start, the mean of the four.

    python scripts/run.py --config=configs/recipes/disperse_then_merge.py:heldout.jsonl --workdir=runs/dtm \
        --config.train.model.path=MODEL_FOLDER --config.train.data.path=conversations.jsonl

What the runs share is `config.train`, and how the data is cut is `config.stages[0].config`; the merged model is in
runs/dtm/merged. heldout.jsonl is what it is measured on.
"""

from jaxsft.config import (
    DataConfig,
    DisperseConfig,
    MergeConfig,
    ModelConfig,
    RecipeConfig,
    StageConfig,
    SuiteConfig,
    TaskConfig,
    TrainConfig,
)

PARTS = 4  # the paper's


def get_config(path: str = "heldout.jsonl") -> RecipeConfig:
    train = TrainConfig()
    train.model.path = ""
    train.data.path = ""
    train.data.max_length = 1024

    train.adapter.kind = "lora"  # "none" is full fine-tuning
    train.adapter.lora.rank = 16
    train.adapter.lora.alpha = 16.0
    train.adapter.lora.dropout = 0.05
    train.adapter.lora.targets = ("layers.*.mlp.*_proj",)

    train.optimizer.learning_rate = 3e-4
    train.optimizer.warmup_steps = 100
    train.optimizer.b2 = 0.98
    train.optimizer.weight_decay = 0.0
    train.optimizer.max_grad_norm = 0.3
    train.epochs = 1.0  # of each part, so all runs together take the steps of one on the whole
    train.batch_size = 16
    train.checkpoint.every = 200

    part = lambda k: {"data.parts": "{parts}/parts.parquet", "data.part": k}
    runs = [StageConfig(f"part_{k}", "train", changes=part(k)) for k in range(PARTS)]
    task = TaskConfig("likelihood", "perplexity", DataConfig(path, max_length=1_000_000))
    return RecipeConfig(
        train=train,
        stages=[
            # or by "iid", "source", "task_type", "kmeans"
            StageConfig("parts", "disperse", DisperseConfig(method="random", parts=PARTS)),
            *runs,
            StageConfig("merged", "merge", MergeConfig("linear", tuple(f"{{{run.name}}}" for run in runs))),
            StageConfig("figures", "evaluate", SuiteConfig([task], ModelConfig("{merged}"))),
        ],
    )
