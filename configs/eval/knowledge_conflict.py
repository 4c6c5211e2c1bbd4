"""Whether a model believes a context that contradicts what it knows by heart (arXiv:2410.10796).

    python scripts/evaluate.py --config=configs/eval/knowledge_conflict.py --model=BASE --output=base.json \
        --config.data.path=world_facts.json
    python scripts/evaluate.py --config=configs/eval/knowledge_conflict.py --model=DIR --output=OUT.json \
        --config.data.path=world_facts.json --config.known=base.jsonl
"""

from jaxsft.config import DataConfig, EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        task="knowledge_conflict",
        known="",  # the base's answers: only items that it answers from memory count
        data=DataConfig(
            template="auto",  # "none" for models that know no turns
            max_length=1_000_000,  # the model's context, where that is shorter
        ),
        max_new_tokens=32,
        batch_size=64,
    )
