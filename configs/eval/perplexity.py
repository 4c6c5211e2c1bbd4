"""Negative log-likelihood per token of held-out conversations or text.

python scripts/evaluate.py --config=configs/eval/perplexity.py --model=DIR --config.data.path=FILE --output=OUT.json
"""

from jaxsft.config import DataConfig, EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        task="perplexity",
        data=DataConfig(
            template="auto",  # a run's own, else the tokenizer's
            max_length=1_000_000,  # the model's context, where that is shorter
        ),
        batch_size=16,
    )
