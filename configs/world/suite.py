"""What a model of the embedded world has learnt, kept and lost.

python scripts/evaluate.py --config=configs/world/suite.py --model=runs/full
"""

from jaxsft.config import SuiteConfig
from jaxsft.world.recipe import suite


def get_config() -> SuiteConfig:
    return suite()
