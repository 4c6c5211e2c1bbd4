"""Answers in the model's own words: the data of SDFT (arXiv:2402.13669).

    python scripts/synthesize.py --config=configs/synthesize/sdft.py --output=DIR \
        --config.model.path=MODEL_FOLDER --config.data.path=conversations.jsonl

DIR/records.jsonl holds as many records as there were, in their order; configs/recipes/sdft.py trains on them too.
"""

from jaxsft.config import SynthesisConfig


def get_config() -> SynthesisConfig:
    config = SynthesisConfig(method="sdft")
    config.sdft.template = "guide"  # "refer" for code and function calls, "math" for worked problems
    config.sdft.accept = "chat"  # "code", "call" and "number" check such answers besides
    config.temperature = 0.95
    config.top_p = 0.7
    config.top_k = 50
    config.max_new_tokens = 512
    return config
