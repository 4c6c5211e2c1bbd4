"""Wanda: of every four inputs of an output the two with the smallest |weight| x |input| are pruned.

    python scripts/prune.py --config=configs/prune/wanda.py --output=runs/pruned \
        --config.model.path=MODEL_FOLDER --config.data.path=text.jsonl
"""

from jaxsft.config import DataConfig, PruneConfig


def get_config() -> PruneConfig:
    config = PruneConfig()
    config.model.path = ""
    config.data = DataConfig(
        path="",  # what inputs are measured on: text, or conversations like those of the fine-tuning to come
        rows=":128",
        template="auto",
        max_length=2048,
    )
    config.score = "wanda"
    config.sparsity = "2:4"  # keeps 2 of every 4; "0.5" prunes half of each output's inputs, wherever they stand
    config.dsnot.targets = ()  # ("layers.*.attn.*_proj",) exchanges weights there by DSnoT
    return config
