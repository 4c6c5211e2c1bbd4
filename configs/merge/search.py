"""Weights of a merge, chosen on validation data, which must not be the data that the result is judged by.

    python scripts/search_merge.py --config=configs/merge/search.py:validation.jsonl --output=search \
        --config.merge.models="('runs/a', 'runs/b')"
"""

from jaxsft.config import DataConfig, MergeConfig, SearchConfig, TaskConfig


def get_config(path: str = "validation.jsonl") -> SearchConfig:
    config = SearchConfig()
    config.merge = MergeConfig("linear")  # or any method that reads weights
    config.tasks = [TaskConfig("validation", "perplexity", DataConfig(path, max_length=1_000_000))]
    config.factors = ()  # with a second task, of what is to be kept, how much each counts
    config.kind = "grid"  # "nelder_mead" for three models or more
    config.cells = 4  # weights are multiples of 1/4
    config.budget = 50
    return config
