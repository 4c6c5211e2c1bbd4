r"""MATH (Hendrycks et al. 2021): what stands in the last \boxed{...}, written in one way.

python scripts/evaluate.py --config=configs/eval/competition_math.py:FILE --model=DIR --output=OUT.json
"""

from jaxsft.config import AnswerConfig, DataConfig, EvaluateConfig, PromptConfig, ShotsConfig


def get_config(path: str = "") -> EvaluateConfig:
    return EvaluateConfig(
        task="generation",
        prompt=PromptConfig(question="Problem:\n{question}\n\nSolution:", shots=ShotsConfig(count=0)),
        answer=AnswerConfig(match="boxed", stop=("Problem:",)),
        data=DataConfig(path=path, template="auto", max_length=1_000_000),
        max_new_tokens=512,
        batch_size=64,
    )
