"""Jobs around training: scoring, stages, merging."""

import dataclasses
from typing import Any

from jaxsft.config.data import DataConfig
from jaxsft.config.model import MeshConfig, ModelConfig
from jaxsft.config.training import TrainConfig


@dataclasses.dataclass
class ScoreConfig:
    """The confidence of a reference run in each example, as a stage of a recipe measures it.

    Attributes:
      model: dtypes and attention; its path is the reference run's workdir, of which every snapshot is asked (the last
        checkpoint, if `checkpoint.snapshots` was 0), or a model folder or hub name.
      data: the examples; without path and sources those that the run was trained on.
      grouping: the `DataConfig.grouping` under which the scores are to be used, which decides how long an example is.
      batch_size: rows of a batch.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    grouping: str = "example"
    batch_size: int = 16


@dataclasses.dataclass
class StageConfig:
    """One stage of a recipe.

    Attributes:
      name: of its folder in the workdir; later stages refer to that as `{name}` in any string.
      kind: what it does: "train" (a `TrainConfig`), "score" (a `ScoreConfig`) or "evaluate" (a `SuiteConfig`).
      config: of the type that `kind` takes; None for "train" is the recipe's `train`.
      changes: field -> value, applied to the config, such as {"objective.name": "sftmix"}.
    """

    name: str = ""
    kind: str = "train"
    config: Any = None
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class RecipeConfig:
    """A job of several stages, which `scripts/run.py` does one after the other.

    Attributes:
      train: what the training runs share, each with its `changes`.
      stages: in their order.
    """

    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    stages: list[StageConfig] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class MergeConfig:
    """Models that `scripts/merge.py` makes one of.

    Attributes:
      method: "linear" (the weighted mean).
      models: folders, hub names or workdirs; dtype, tokenizer and chat template are those of the last.
      weights: one for each model, of sum 1.
    """

    method: str = "linear"
    models: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
