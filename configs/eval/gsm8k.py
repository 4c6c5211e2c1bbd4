"""GSM8K (Cobbe et al. 2021): the number that the model ends with, strict (behind "####") and flexible (the last one).

    python scripts/evaluate.py --config=configs/eval/gsm8k.py:FILE --model=DIR --output=OUT.json

Eight worked examples: --config.prompt.shots.path=TRAIN_FILE --config.prompt.shots.count=8.
"""

from jaxsft.config import AnswerConfig, DataConfig, EvaluateConfig, PromptConfig, ShotsConfig


def get_config(path: str = "") -> EvaluateConfig:
    return EvaluateConfig(
        task="generation",
        prompt=PromptConfig(question="Question: {question}\nAnswer:", shots=ShotsConfig(count=0)),
        answer=AnswerConfig(match="number", stop=("Question:",)),
        data=DataConfig(path=path, template="auto", max_length=1_000_000),
        max_new_tokens=256,
        batch_size=64,
    )
