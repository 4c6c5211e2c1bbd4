"""WiSE-FT: a model between the one that fine-tuning started from and the one that it ended with.

    python scripts/merge.py --config=configs/merge/wise_ft.py --output=merged \
        --config.models="('MODEL_FOLDER', 'runs/full')" --config.weights="(0.5, 0.5)"
"""

from jaxsft.config import MergeConfig


def get_config() -> MergeConfig:
    config = MergeConfig()
    config.method = "linear"
    config.models = ()  # the start, then the tuned model: folders, hub names or workdirs
    config.weights = (0.5, 0.5)  # 1 - a and a: nearer to the start, less is learnt and less forgotten
    return config
