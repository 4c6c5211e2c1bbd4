"""IFEval: the share of prompts and instructions that a model follows, where a program can tell.

    python scripts/evaluate.py --config=configs/eval/ifeval.py --model=DIR --config.data.path=input_data.jsonl \
        --output=OUT.json

The file is IFEval's own (google-research/instruction_following_eval, data/input_data.jsonl). Instructions on the
language of an answer need langdetect: pip install 'jaxsft[eval]'.
"""

from jaxsft.config import DataConfig, EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        task="ifeval",
        data=DataConfig(
            template="auto",  # "none" for models that know no turns
            max_length=1_000_000,  # the model's context, where that is shorter
        ),
        max_new_tokens=1280,  # as published; models of a short context take less
        batch_size=64,
    )
