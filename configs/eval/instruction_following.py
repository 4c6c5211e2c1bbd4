"""How often a model answers, instead of continuing the prompt (IFS, arXiv:2307.03692).

    python scripts/make_ifs.py --data=conversations.jsonl --output=runs/ifs
    python scripts/evaluate.py --config=configs/eval/instruction_following.py --model=DIR --output=OUT.json \
        --config.data.path=runs/ifs/prompts.jsonl --config.classifier=runs/ifs/classifier.npz
"""

from jaxsft.config import DataConfig, EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        task="instruction_following",
        classifier="",  # what scripts/make_ifs.py made
        data=DataConfig(
            template="auto",  # "none" for models that know no turns
            max_length=1_000_000,  # the model's context, where that is shorter
        ),
        max_new_tokens=128,
        batch_size=64,
    )
