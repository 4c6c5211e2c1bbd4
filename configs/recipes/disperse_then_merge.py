"""Disperse-Then-Merge (arXiv:2405.13432): the data in parts, a model on each from one start, the mean of their weights.

    python scripts/run.py --config=configs/recipes/disperse_then_merge.py:heldout.jsonl --workdir=runs/dtm \
        --config.train.model.path=MODEL_FOLDER --config.train.data.path=conversations.jsonl

What the models share is `config.train`, and how the data is cut is `config.stages[0].config`; the merged model is in
runs/dtm/merged. heldout.jsonl is what all of them are measured on. Four LoRA adapters are trained at once;
`:heldout.jsonl,8` makes it eight, and `:heldout.jsonl,4,full` trains all weights, one part after the other.
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
from jaxsft.errors import UserError

DEFAULTS = ["heldout.jsonl", "4", "lora"]  # four parts are the paper's


def get_config(asked: str = "heldout.jsonl") -> RecipeConfig:
    given = asked.split(",")
    heldout, parts, tuning, *more = given + DEFAULTS[len(given) :]
    if more or not parts.isdigit() or tuning not in ("lora", "full"):
        raise UserError(f"{asked!r} is not understood; write HELDOUT,PARTS,lora or HELDOUT,PARTS,full.")
    count, part = int(parts), {"data.parts": "{parts}/parts.parquet"}
    train = TrainConfig()
    train.model.path = ""
    train.data.path = ""
    train.data.max_length = 1024

    if tuning == "lora":
        train.adapter.kind = "lora"
        train.adapter.lora.rank = 16
        train.adapter.lora.alpha = 16.0
        train.adapter.lora.dropout = 0.05
        train.adapter.lora.targets = ("layers.*.mlp.*_proj",)

    train.optimizer.learning_rate = 3e-4
    train.optimizer.warmup_steps = 100
    train.optimizer.b2 = 0.98
    train.optimizer.weight_decay = 0.0
    train.optimizer.max_grad_norm = 0.3
    train.epochs = 1.0  # of each part, so all models together take the steps of one on the whole
    train.batch_size = 16
    train.checkpoint.every = 200
    train.eval.path = heldout
    train.eval.every = 200

    if tuning == "lora":
        models = [StageConfig("models", "train", changes=part | {"submodels": count})]
        trained = tuple(f"{{models}}/submodels/{k}/adapter" for k in range(count))
    else:
        models = [StageConfig(f"model_{k}", "train", changes=part | {"data.part": k}) for k in range(count)]
        trained = tuple(f"{{{model.name}}}" for model in models)
    task = TaskConfig("likelihood", "perplexity", DataConfig(heldout, max_length=1_000_000))
    return RecipeConfig(
        train=train,
        stages=[
            # or by "iid", "source", "task_type", "kmeans"
            StageConfig("parts", "disperse", DisperseConfig(method="random", parts=count)),
            *models,
            StageConfig("merged", "merge", MergeConfig("linear", trained)),
            StageConfig("figures", "evaluate", SuiteConfig([task], ModelConfig("{merged}"))),
        ],
    )
