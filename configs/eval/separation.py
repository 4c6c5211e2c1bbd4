"""Whether a model keeps instruction and data apart (SEP, arXiv:2403.06833).

    python scripts/evaluate.py --config=configs/eval/separation.py --model=DIR --config.data.path=SEP_dataset.json \
        --output=OUT.json

For a template without a system turn: --config.instruction_in=user, or =labels.
"""

from jaxsft.config import DataConfig, EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        task="separation",
        instruction_in="system",
        data=DataConfig(
            template="auto",  # "none" for models that know no turns
            max_length=1_000_000,  # the model's context, where that is shorter
        ),
        max_new_tokens=2048,  # the authors'
        batch_size=64,
    )
