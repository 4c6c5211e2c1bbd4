"""Disperse-Then-Merge: LoRA of rank 8 on each of K parts, merged. A variant is dtm:PARTS-DISPERSAL-MERGE.

python scripts/compare.py --cases=full,lora,dtm:4-random-linear,dtm:4-kmeans-ties --starts=world:chat --output=runs/dtm

The dispersal is one of DISPERSALS (`DisperseConfig.method`), the merge one of MERGES.
"""

import shutil
from pathlib import Path

from jaxsft.config import DisperseConfig, MergeConfig, ModelConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.world.recipe import plain

LEARNING_RATES = (1e-3, 3e-3)
DISPERSALS = ("random", "iid", "task_type", "kmeans")
MERGES = {
    "linear": MergeConfig("linear"),  # the mean of updates
    "factor": MergeConfig("lora_factor"),  # the mean of factors, as the authors' code
    "sum": MergeConfig("task_arithmetic"),
    "karcher": MergeConfig("karcher"),
    "stock": MergeConfig("model_stock"),
    "ties": MergeConfig("ties", density=(0.5,)),
    "dare": MergeConfig("dare_linear", density=(0.5,), normalize=True),
    "dare_ties": MergeConfig("dare_ties", density=(0.5,)),
    "della": MergeConfig("della", density=(0.5,)),
    "breadcrumbs": MergeConfig("breadcrumbs", density=(0.5,), normalize=True),
    "sce": MergeConfig("sce", density=(0.5,)),
    "fisher": MergeConfig("fisher"),
    "regmean": MergeConfig("regmean"),
}


def _parse(asked: str) -> tuple[int, str, str]:
    parts, _, rest = asked.partition("-")
    dispersal, _, merge = rest.partition("-")
    if not parts.isdigit() or dispersal not in DISPERSALS or merge not in MERGES:
        raise UserError(
            f"dtm:{asked} is no variant; write dtm:PARTS-DISPERSAL-MERGE, with one of {', '.join(DISPERSALS)} and "
            f"one of {', '.join(MERGES)}."
        )
    return int(parts), dispersal, merge


def get_config(asked: str = "4-random-linear") -> TrainConfig:
    parts, _, _ = _parse(asked)
    config = plain()
    config.model.path = "world:chat"
    config.adapter.kind = "lora"
    config.adapter.lora.rank = 8
    config.adapter.lora.alpha = 16.0
    config.submodels = parts
    config.data.parts = "parts.parquet"  # made by `run`
    return config


def run(config: TrainConfig, workdir: str, asked: str = "4-random-linear") -> Path:
    """Disperses, trains and merges in the workdir; returns the folder of the merged model."""
    import dataclasses

    from jaxsft.dispersal.run import disperse  # here, for the file is also read by who only plans
    from jaxsft.merging.merge import merge
    from jaxsft.training.train import train

    _, dispersal, how = _parse(asked)
    table, merged = Path(workdir) / "parts", Path(workdir) / "merged"
    whole = dataclasses.replace(config.data, parts="")
    start = ModelConfig(config.model.path)
    disperse(DisperseConfig(start, whole, method=dispersal, parts=config.submodels, seed=config.seed), table)
    config.data = dataclasses.replace(config.data, parts=str(table / "parts.parquet"))
    train(config, workdir)
    shutil.rmtree(merged, ignore_errors=True)  # of a run that was broken off behind it
    adapters = tuple(str(Path(workdir) / "submodels" / str(k) / "adapter") for k in range(config.submodels))
    wanted = dataclasses.replace(MERGES[how], models=adapters)
    if how != "factor":
        wanted = dataclasses.replace(wanted, dtype="float32")
    if how in ("fisher", "regmean"):
        wanted = dataclasses.replace(wanted, data=whole)
    merge(wanted, merged)
    return merged
