"""Which experts of a LoRAMoE run the examples of each kind are routed to, in every linear map.

python scripts/evaluate.py --config=configs/eval/routing.py --model=DIR --config.data.path=FILE --output=OUT.json
"""

from jaxsft.config import DataConfig, EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        task="routing",
        data=DataConfig(
            template="auto",  # the run's own; so are the types
            max_length=1_000_000,  # the model's context, where that is shorter
        ),
        batch_size=16,
    )
