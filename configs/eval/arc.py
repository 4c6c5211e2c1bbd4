"""ARC (Clark et al. 2018) and others like it: the likeliest text among the choices, which are not listed.

    python scripts/evaluate.py --config=configs/eval/arc.py:FILE --model=DIR --output=OUT.json

`normalized` holds the accuracy by every normalization; "characters" is `acc_norm` of lm-evaluation-harness.
"""

from jaxsft.config import DataConfig, EvaluateConfig, PromptConfig, ShotsConfig


def get_config(path: str = "") -> EvaluateConfig:
    return EvaluateConfig(
        task="multiple_choice",
        choices="text",
        normalize="characters",
        prompt=PromptConfig(question="Question: {question}\nAnswer:", shots=ShotsConfig(count=0)),
        data=DataConfig(path=path, template="auto", max_length=1_000_000),
        batch_size=16,
    )
