"""AGIEval (Zhong et al. 2023), its files of multiple choice: which letter the model says after the listed choices.

    python scripts/evaluate.py --config=configs/eval/agieval.py:FOLDER --model=DIR --output=OUT.json

FOLDER holds the benchmark's `.jsonl` files of multiple choice. Its other files (`math`, `gaokao-mathcloze`) ask for
written answers: configs/eval/competition_math.py.
"""

from jaxsft.config import DataConfig, EvaluateConfig, PromptConfig, ShotsConfig


def get_config(path: str = "") -> EvaluateConfig:
    return EvaluateConfig(
        task="multiple_choice",
        choices="letters",
        prompt=PromptConfig(question="Q: {question}\nAnswer choices:\n{choices}\nA:", shots=ShotsConfig(count=0)),
        data=DataConfig(path=path, template="auto", max_length=1_000_000),
        batch_size=16,
    )
