"""Closed-book questions of TriviaQA (Joshi et al. 2017): exact match with any of the aliases, contains, and F1.

    python scripts/evaluate.py --config=configs/eval/triviaqa.py:FILE --model=DIR --output=OUT.json

FILE is one of the benchmark, or a `.csv` with `question` and `answer`, in which "; " stands between aliases.
"""

from jaxsft.config import AnswerConfig, DataConfig, EvaluateConfig, PromptConfig, ShotsConfig


def get_config(path: str = "") -> EvaluateConfig:
    return EvaluateConfig(
        task="generation",
        prompt=PromptConfig(question="Question: {question}\nAnswer:", shots=ShotsConfig(count=0)),
        answer=AnswerConfig(match="alias", separator="; ", stop=("\n",)),
        data=DataConfig(path=path, template="auto", max_length=1_000_000),
        max_new_tokens=32,
        batch_size=64,
    )
