"""Answers to AlpacaEval's instructions, for its judge (Dubois et al. 2024).

    python scripts/evaluate.py --config=configs/eval/alpaca_eval.py:FILE --model=DIR --output=OUT.json

The answers are in OUT.answers.alpaca_eval.json: `alpaca_eval --model_outputs OUT.answers.alpaca_eval.json`.
"""

from jaxsft.config import DataConfig, EvaluateConfig


def get_config(path: str = "") -> EvaluateConfig:
    return EvaluateConfig(
        task="answers",
        judge="alpaca_eval",
        data=DataConfig(path=path, template="auto", max_length=1_000_000),
        max_new_tokens=1024,
        batch_size=32,
    )
