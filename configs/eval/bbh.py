"""BIG-Bench Hard (Suzgun et al. 2022): what the model says behind "the answer is", after a chain of thought, by task.

    python scripts/evaluate.py --config=configs/eval/bbh.py:FOLDER --model=DIR --output=OUT.json

FOLDER holds the benchmark's `.json` files. Chains of the same task as examples: a file whose records have `question`,
`answer` (the chain) and `source` (the task) as --config.prompt.shots.path, and --config.prompt.shots.count=3. Tasks
with listed options by likelihood, without a chain: configs/eval/agieval.py.
"""

from jaxsft.config import AnswerConfig, DataConfig, EvaluateConfig, PromptConfig, ShotsConfig


def get_config(path: str = "") -> EvaluateConfig:
    return EvaluateConfig(
        task="generation",
        prompt=PromptConfig(
            question="Q: {question}\nA: Let's think step by step.", shots=ShotsConfig(count=0, same_source=True)
        ),
        answer=AnswerConfig(match="stated", stop=("\nQ:",)),
        data=DataConfig(path=path, template="auto", max_length=1_000_000),
        max_new_tokens=512,
        batch_size=64,
    )
