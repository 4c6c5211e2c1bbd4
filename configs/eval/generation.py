"""Share of questions that the model answers with the reference, word for word.

    python scripts/evaluate.py --config=configs/eval/generation.py --model=DIR --config.data.path=FILE \
        --output=OUT.json

The last message of a record is the reference, those before it are the prompt; the answers are in OUT.jsonl.
"""

from jaxsft.config import DataConfig, EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        task="generation",
        data=DataConfig(
            template="auto",  # "none" for models that know no turns
            max_length=1_000_000,  # the model's context, where that is shorter
        ),
        max_new_tokens=0,  # as many as the longest reference needs
        batch_size=64,
    )
