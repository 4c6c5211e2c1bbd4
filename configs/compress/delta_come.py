"""Delta-CoMe: a fine-tuned model as what changed of its base, at a sixteenth of the size of its matrices.

    python scripts/compress.py --config=configs/compress/delta_come.py --output=compressed \
        --config.model=runs/full [--config.base=MODEL_FOLDER]
"""

from jaxsft.config import CompressConfig


def get_config() -> CompressConfig:
    config = CompressConfig()
    config.model = ""  # a workdir, a model folder, a hub name or an adapter
    config.base = ""  # what it was tuned from; a workdir knows
    config.targets = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")  # "embed" and "head" too, if they are to be small
    config.bits = (8, 3, 2)
    config.columns = (2, 32)  # singular vectors at 8 and at 3 bits; as many at 2 bits as the size leaves room for
    config.size_ratio = 16.0
    config.counts = "stored"  # "codes" leaves scales uncounted: the paper's 968 columns at 2 bits for 4096 x 4096
    config.group_size = 128
    config.refine = True  # False spans a group's codes from its smallest to its largest entry, as the paper does
    return config
