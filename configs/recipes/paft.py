"""PAFT (arXiv:2406.17923): a sparse adapter by fine-tuning beside one by DPO, from one base, and their merge.

    python scripts/run.py --config=configs/recipes/paft.py:pairs.json,heldout.jsonl,5e-6 --workdir=runs/paft \
        --config.train.model.path=MODEL_FOLDER --config.train.data.path=conversations.jsonl

pairs.json holds `chosen` and `rejected` answers, heldout.jsonl what all are measured on, 5e-6 is DPO's learning rate.
`config.train` is the run on conversations, of which the one on pairs changes a few fields; the merged model is in
runs/paft/merged.
"""

import re

from jaxsft.config import (
    DataConfig,
    MergeConfig,
    ModelConfig,
    RecipeConfig,
    StageConfig,
    SuiteConfig,
    TaskConfig,
    TrainConfig,
)
from jaxsft.errors import UserError


def get_config(arguments: str = "pairs.json,heldout.jsonl,5e-6") -> RecipeConfig:
    given = arguments.split(",")
    if len(given) != 3 or not re.fullmatch(r"[0-9.]+(e-?[0-9]+)?", given[-1]):
        raise UserError(f"{arguments!r} is not understood; write PAIRS,HELDOUT,LEARNING_RATE.")
    pairs, heldout, rate = given
    train = TrainConfig()
    train.model.path = ""
    train.data.path = ""
    train.data.max_length = 1024  # a pair shares a row, so each of its answers has half of it

    train.adapter.kind = "lora"
    train.adapter.lora.rank = 16
    train.adapter.lora.alpha = 32.0
    train.adapter.lora.targets = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")

    terms = train.objective.regularizers  # of the run on conversations, which DPO leaves out
    terms.l1 = 0.1  # by factors of ten, until metrics.jsonl shows the l1_sparsity that is wanted
    terms.l1_on = "weights"  # the factors A and B
    terms.l1_proximal = True  # exact zeros; without it take 1e-5 to 1e-3

    train.optimizer.learning_rate = 2e-4
    train.optimizer.warmup_ratio = 0.1
    train.epochs = 1.0
    train.batch_size = 16
    train.checkpoint.every = 200

    dpo = {
        "data.path": pairs,
        "data.grouping": "preference",
        "objective.name": "dpo",  # what it is held to is the base
        "objective.beta": 0.1,
        "optimizer.learning_rate": float(rate),
        "objective.regularizers.l1": 0.0,
        "objective.regularizers.l1_proximal": False,
    }
    # or "task_arithmetic", "linear", "slerp", "dare_ties": docs/merging.md
    merged = MergeConfig("ties", ("{sft}", "{dpo}"), density=(0.7,))
    task = TaskConfig("likelihood", "perplexity", DataConfig(heldout, max_length=1_000_000))
    measured = [
        StageConfig(f"figures_{name}", "evaluate", SuiteConfig([task], ModelConfig(f"{{{name}}}")))
        for name in ("sft", "dpo", "merged")
    ]
    return RecipeConfig(
        train=train,
        stages=[
            StageConfig("sft", "train"),
            StageConfig("dpo", "train", changes=dpo),
            StageConfig("merged", "merge", merged),
            *measured,
        ],
    )
