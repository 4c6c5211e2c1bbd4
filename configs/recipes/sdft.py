"""SDFT (arXiv:2402.13669): the model writes the answers anew in its own words, and is trained on those.

    python scripts/run.py --config=configs/recipes/sdft.py:heldout.jsonl --workdir=runs/sdft \
        --config.train.model.path=MODEL_FOLDER --config.train.data.path=conversations.jsonl

What was kept of its answers is counted in runs/sdft/distilled/synthesis.json; the adapter is in runs/sdft/tuned, and
heldout.jsonl what it is measured on. How the model is asked and what is accepted: `config.stages[0].config`.
"""

from jaxsft.config import (
    DataConfig,
    ModelConfig,
    RecipeConfig,
    StageConfig,
    SuiteConfig,
    SynthesisConfig,
    TaskConfig,
    TrainConfig,
)


def get_config(heldout: str = "heldout.jsonl") -> RecipeConfig:
    train = TrainConfig()
    train.model.path = ""  # one that has learnt to follow instructions
    train.data.path = ""
    train.data.max_length = 1024

    train.adapter.kind = "lora"
    train.adapter.lora.rank = 8
    train.adapter.lora.alpha = 16.0
    train.adapter.lora.dropout = 0.1
    train.adapter.lora.targets = ("layers.*.attn.q_proj", "layers.*.attn.v_proj")
    train.optimizer.learning_rate = 1e-4
    train.epochs = 2.0  # five for GSM8K and OpenFunctions
    train.batch_size = 8
    train.checkpoint.every = 200

    own = SynthesisConfig(method="sdft", temperature=0.95, top_p=0.7, top_k=50, max_new_tokens=512)
    own.sdft.template = "guide"  # "refer" for code and function calls, "math" for worked problems
    own.sdft.accept = "chat"  # "code", "call" and "number" check such answers besides
    distilled = {"data.path": "{distilled}/records.jsonl", "data.rows": "", "data.fields": {}, "data.sources": []}
    tasks = [
        TaskConfig("likelihood", "perplexity", DataConfig(heldout, max_length=1_000_000)),
        TaskConfig("moved", "deviation", DataConfig(heldout, max_length=1_000_000)),  # from the model without adapter
    ]
    return RecipeConfig(
        train=train,
        stages=[
            StageConfig("distilled", "synthesize", own),
            StageConfig("tuned", "train", changes=distilled),
            StageConfig("figures", "evaluate", SuiteConfig(tasks, ModelConfig("{tuned}"))),
        ],
    )
