"""TIES: of models that learnt different things from one start, the large changes on whose sign they agree.

    python scripts/merge.py --config=configs/merge/ties.py --output=merged \
        --config.base=MODEL_FOLDER --config.models="('runs/a', 'runs/b')"
"""

from jaxsft.config import MergeConfig


def get_config() -> MergeConfig:
    config = MergeConfig()
    config.method = "ties"
    config.base = ""  # what the models were tuned from; "" is the common start of workdirs
    config.models = ()  # folders, hub names or workdirs
    config.weights = ()  # one for each model; () is 1 for each
    config.density = (0.2,)  # the share of each task vector that is kept, one for all or one for each; the paper's 20 %
    config.scale = 1.0  # of the merged task vector; tune it between 0.3 and 1.5
    return config
