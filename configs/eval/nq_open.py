"""Closed-book questions of NQ-open (Lee et al. 2019): exact match with any of the references, contains, and F1.

    python scripts/evaluate.py --config=configs/eval/nq_open.py:FILE --model=DIR --output=OUT.json

lm-evaluation-harness also stops at "." and ",": --config.answer.stop="('\\n','.',',')".
"""

from jaxsft.config import AnswerConfig, DataConfig, EvaluateConfig, PromptConfig, ShotsConfig


def get_config(path: str = "") -> EvaluateConfig:
    return EvaluateConfig(
        task="generation",
        prompt=PromptConfig(
            preamble="Answer these questions:\n\n", question="Q: {question}?\nA:", shots=ShotsConfig(count=0)
        ),
        answer=AnswerConfig(match="alias", stop=("\n",)),
        data=DataConfig(path=path, template="auto", max_length=1_000_000),
        max_new_tokens=32,
        batch_size=64,
    )
