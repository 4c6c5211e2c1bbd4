"""The model's own answers to questions, to be trained on beside others (DELIA's diverse data, arXiv:2408.10841).

    python scripts/synthesize.py --config=configs/synthesize/self_sample.py --output=DIR \
        --config.model.path=MODEL_FOLDER --config.data.path=questions.jsonl

DIR/records.jsonl holds them.
"""

from jaxsft.config import SynthesisConfig


def get_config() -> SynthesisConfig:
    config = SynthesisConfig(method="self_sample")
    config.self_sample.mode = "with_reference"  # the authors'; "plain", at temperature 1, anchors at the start model
    config.self_sample.forbidden = ()  # texts that neither question nor answer may have, such as a new token
    config.temperature = 0.7
    config.top_p = 0.95
    config.max_new_tokens = 512
    return config
