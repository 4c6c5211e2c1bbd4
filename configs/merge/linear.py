"""A model soup: the mean of models that were tuned from one start, alike in all but data, seed or settings.

    python scripts/merge.py --config=configs/merge/linear.py --output=merged \
        --config.models="('runs/a', 'runs/b', 'runs/c')"
"""

from jaxsft.config import MergeConfig


def get_config() -> MergeConfig:
    config = MergeConfig()
    config.method = "linear"
    config.models = ()  # folders, hub names or workdirs; tokenizer, chat template and dtype are those of the last
    config.weights = ()  # one for each model, divided by their sum; () is the same for all
    # Other weights by depth or by path:
    # config.gradient = ((1, 0), (0.5, 0.5), (0, 1))  # of two models: at the first, the middle and the last layer
    # config.rules = [MergeRule(("layers.*.attn",), (0.8, 0.2))]
    config.dtype = "auto"  # "float32" keeps changes that bfloat16 would round away; the merge says how much it does
    return config
