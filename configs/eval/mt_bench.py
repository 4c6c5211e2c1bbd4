"""Answers to MT-Bench's questions, turn by turn, for its judge (Zheng et al. 2023).

    python scripts/evaluate.py --config=configs/eval/mt_bench.py:question.jsonl --model=DIR --output=OUT.json

The answers are in OUT.answers.mt_bench.jsonl, which FastChat reads as `model_answer/MODEL.jsonl`.
"""

from jaxsft.config import DataConfig, EvaluateConfig


def get_config(path: str = "") -> EvaluateConfig:
    return EvaluateConfig(
        task="answers",
        judge="mt_bench",
        temperatures={"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1},  # FastChat's; 0 for others
        data=DataConfig(path=path, template="auto", max_length=1_000_000),
        max_new_tokens=1024,
        batch_size=32,
    )
