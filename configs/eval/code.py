"""The share of programming problems that a model solves: problems of HumanEval's or of MBPP's form, and pass@k.

    python scripts/evaluate.py --config=configs/eval/code.py --model=DIR --config.data.path=HumanEval.jsonl \
        --config.code.execute=True --output=OUT.json

Programs that the model wrote are run, in a sandbox (Linux). Several a problem: --config.code.samples=20
--config.code.temperature=0.8.
"""

from jaxsft.config import CodeConfig, DataConfig, EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        task="code",
        data=DataConfig(
            template="auto",  # "none" for models that know no turns
            max_length=1_000_000,  # the model's context, where that is shorter
        ),
        max_new_tokens=512,
        code=CodeConfig(execute=False),  # set it where programs that nobody has read may run
        batch_size=64,
    )
