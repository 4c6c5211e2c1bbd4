"""How far a model moved from the one it was made from, on given data.

    python scripts/evaluate.py --config=configs/eval/deviation.py --model=DIR --config.reference=BASE \
        --config.data.path=FILE --output=OUT.json

Without a reference, a run is compared with the model that it started from.
"""

from jaxsft.config import DataConfig, EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        task="deviation",
        reference="",  # a Hugging Face folder or hub name, or a workdir
        data=DataConfig(
            template="auto",  # a run's own, else the tokenizer's
            max_length=1_000_000,  # the model's context, where that is shorter
        ),
        batch_size=16,
    )
