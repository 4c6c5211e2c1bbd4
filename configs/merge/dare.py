"""DARE: thin each model's changes at random, scale up what is left, and add them to the base.

    python scripts/merge.py --config=configs/merge/dare.py --output=merged \
        --config.base=MODEL_FOLDER --config.models="('runs/a', 'runs/b')"
"""

from jaxsft.config import MergeConfig


def get_config() -> MergeConfig:
    config = MergeConfig()
    config.method = "dare_linear"  # or "dare_ties", which elects signs besides
    config.base = ""  # what the models were tuned from; "" is the common start of workdirs
    config.models = ()  # folders, hub names or workdirs
    config.weights = ()  # one for each model; () is 1 for each, which adds all changes up: try 1/K
    config.density = (0.5,)  # the probability that an entry is kept
    config.rescale = "density"  # divided by that probability, as in the paper; "l1" as mergekit does
    config.seed = 0  # of the masks, which depend on it, on the tensor's name and on the model's place alone
    return config
