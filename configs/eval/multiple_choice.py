"""Accuracy on multiple-choice questions, by the log-likelihood of the choices.

    python scripts/evaluate.py --config=configs/eval/multiple_choice.py --model=DIR --config.data.path=FILE \
        --output=OUT.json
"""

from jaxsft.config import DataConfig, EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        task="multiple_choice",
        data=DataConfig(
            template="auto",  # "none" for models that know no turns
            max_length=1_000_000,  # the model's context, where that is shorter
        ),
        normalize="none",
        batch_size=16,
    )
