"""Jobs around training: scoring, stages."""

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
      context: the field of the records that holds the context of a question, such as "input"; where it is named, not
        confidence is measured but how much each answer needs its context (see `jaxsft.scoring.context`). Every record
        has the field, be it empty.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    grouping: str = "example"
    batch_size: int = 16
    context: str = ""


@dataclasses.dataclass
class DisperseConfig:
    """How a data set is cut into parts, as a stage of a recipe does it; see `jaxsft.dispersal`.

    Attributes:
      model: whose mean hidden states k-means goes by; in every case its tokenizer decides what the examples are.
        Without a path it is the model of the recipe's `train`.
      data: the examples; without path and sources those of the recipe's `train`.
      grouping: the `DataConfig.grouping` under which the parts are to be trained on.
      method: "random" (a permutation cut into equal parts), "iid" (a draw for every record), "source" or "task_type"
        (the records of a name stay together), or "kmeans" (clusters of vectors).
      parts: K; 0, with "source" and "task_type", gives every name a part of its own.
      text: of which tokens hidden states are averaged: those of the "response", of the "instruction", or "both".
      vectors: a Parquet file with a column `vector`, of a vector a record in the data's order, to go by instead; ""
        asks the model.
      balanced: clusters of equal size.
      seed: of permutation, draws and the start of k-means.
      batch_size: rows of a batch.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    grouping: str = "example"
    method: str = "random"
    parts: int = 4
    text: str = "response"
    vectors: str = ""
    balanced: bool = False
    seed: int = 0
    batch_size: int = 16


@dataclasses.dataclass
class ExportConfig:
    """A model folder of what an earlier stage trained, as `scripts/export.py` writes it.

    Attributes:
      model: the workdir, or an adapter's folder.
      merge_base: what an adapter over a quantised base is added to: "dequantised", the weights that it was trained
        with, or "full_precision", those before quantising.
      dtype: of the files; "auto" is that of the model that the run started from.
    """

    model: str = ""
    merge_base: str = "dequantised"
    dtype: str = "auto"
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


@dataclasses.dataclass
class StageConfig:
    """One stage of a recipe.

    Attributes:
      name: of its folder in the workdir; later stages refer to that as `{name}` in any string.
      kind: what it does: "train" (a `TrainConfig`), "score" (a `ScoreConfig`), "disperse" (a `DisperseConfig`), "merge"
        (a `MergeConfig`), "search" (a `SearchConfig`), "compress" (a `CompressConfig`), "tokens" (a
        `TokensConfig`), "reword" (a `RewordConfig`), "mix" (a `MixConfig`), "evaluate" (a `SuiteConfig`), "synthesize"
        (a `SynthesisConfig`), "export" (an `ExportConfig`) or "forgetting" (a `ForgettingConfig`).
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
