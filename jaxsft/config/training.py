"""A training run."""

import dataclasses

from jaxsft.config.adapter import AdapterConfig
from jaxsft.config.data import DataConfig
from jaxsft.config.evaluation import EvalConfig
from jaxsft.config.model import MeshConfig, ModelConfig
from jaxsft.config.objective import ObjectiveConfig, ReferenceConfig


@dataclasses.dataclass
class OptimizerConfig:
    """The optimizer and its schedule.

    Attributes:
      name: "adamw", "adafactor", "lion", "sm3" or "muon".
      learning_rate: the peak.
      schedule: "cosine", "linear", "constant" or "wsd" (warm-up, stable, linear decay over the last `decay_ratio`).
      warmup_steps: linear warm-up from 0; `warmup_ratio` of the run where negative.
      warmup_ratio: see `warmup_steps`.
      decay_ratio: see `schedule`.
      final_ratio: the last learning rate over the peak.
      b1: first-moment decay (momentum).
      b2: second-moment decay.
      eps: denominator's epsilon.
      weight_decay: decoupled.
      no_decay: logical-path patterns of parameters without weight decay.
      freeze: logical-path patterns of parameters that are not trained.
      max_grad_norm: global-norm clipping; 0 is none.
      ema: decay of the exponential moving average of the parameters; 0 is none.
    """

    name: str = "adamw"
    learning_rate: float = 1e-5
    schedule: str = "cosine"
    warmup_steps: int = -1
    warmup_ratio: float = 0.03
    decay_ratio: float = 0.1
    final_ratio: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = ("*norm*", "*bias", "embed*")
    freeze: tuple[str, ...] = ()
    max_grad_norm: float = 1.0
    ema: float = 0.0


@dataclasses.dataclass
class CheckpointConfig:
    """When state is saved, and what is kept.

    Attributes:
      every: steps between saves; 0 saves only at the end (and on SIGTERM).
      keep_latest: how many of the latest are kept.
      keep_best: how many with the lowest evaluation loss are kept besides; every evaluation is then saved.
      snapshots: how many are saved at equal distances, the last at the end of the run, and kept besides.
    """

    every: int = 500
    keep_latest: int = 1
    keep_best: int = 0
    snapshots: int = 0


@dataclasses.dataclass
class LogConfig:
    """What is written while training.

    Attributes:
      every: steps between lines of `metrics.jsonl`.
      tensorboard: event files in the workdir.
      layer_grad_norms: also the norm of the gradient of each layer, as `grad_norm/layer_00` and so on, and of what is
        in no layer.
      wandb_project: a Weights & Biases project; "" is none (needs the extra `wandb`).
    """

    every: int = 1
    tensorboard: bool = True
    layer_grad_norms: bool = False
    wandb_project: str = ""


@dataclasses.dataclass
class TrainConfig:
    """A training run.

    Attributes:
      batch_size: rows of an optimizer step over all devices; without packing, examples.
      accumulate: micro-batches of an optimizer step.
      steps: optimizer steps; 0 takes `epochs`.
      epochs: passes over the data, when `steps` is 0.
      seed: of initialisation, data order and dropout.
      submodels: so many models at once over one frozen base, each on a part of its own of `data.parts` and for
        `epochs` of it; each is what a run on `data.part` alone would make. 0 is one model.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    reference: ReferenceConfig = dataclasses.field(default_factory=ReferenceConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    batch_size: int = 16
    accumulate: int = 1
    steps: int = 0
    epochs: float = 1.0
    seed: int = 0
    submodels: int = 0
