"""The typed tree that a file in `configs/` returns.

Every field has a type and a default that works; `jaxsft.validation` refuses what cannot. Names that TRL users know keep
their meaning (`max_length`, `packing`, `learning_rate`).
"""

import dataclasses
from typing import Any


@dataclasses.dataclass
class SourceConfig:
    """One source of records.

    Attributes:
      path: a file, folder or glob, local or `gs://`, of `.json`, `.jsonl` or `.parquet`;
        `tfds:NAME[/CONFIG][:SPLIT]`; or `world:SPLIT` of the built-in world.
      name: the source's tag in reports; default: the file's name. A record's own `source` field wins.
      weight: how many times the source is seen in an epoch: 2.0 twice, 0.5 a random half (redrawn each epoch).
      fields: field map for records of no known form, from record field to canonical one, e.g.
        {"question": "prompt", "answer": "completion"}.
      rows: "start:stop" as in Python, negative counts from the end; "" is all. The way to hold out rows.
      data_dir: for `tfds:` the folder with the prepared data; "" is its default.
    """

    path: str = ""
    name: str = ""
    weight: float = 1.0
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    rows: str = ""
    data_dir: str = ""


@dataclasses.dataclass
class ClassesConfig:
    """C-RLFT: classes of records, by quality or kind, that differ in condition and loss weight; see
    `jaxsft.data.classes`.

    Attributes:
      by: the tag that names a record's class: "source" or "task_type".
      condition: class -> text that the template writes into the prefixes of its turns, as the variable `condition`; ""
        is the template without one. No class of the data may be left out; `DataConfig.condition` stands for the rest.
      inference: the class whose condition is used when the model is asked; needed where there are conditions.
      weight: class -> loss weight of its tokens, over the largest; 0 drops its examples.
      reward: class -> reward r instead, for a weight of exp(r / beta).
      beta: temperature of `reward`.
      balanced: multiply each class's weight by N / N_class, the numbers of examples.
    """

    by: str = "source"
    condition: dict[str, str] = dataclasses.field(default_factory=dict)
    inference: str = ""
    weight: dict[str, float] = dataclasses.field(default_factory=dict)
    reward: dict[str, float] = dataclasses.field(default_factory=dict)
    beta: float = 0.0
    balanced: bool = False


@dataclasses.dataclass
class MixtureConfig:
    """Domains with a system prompt each (Mixture-of-Instructions, see `jaxsft.data.mixture`).

    Attributes:
      by: what of a record names its domain, "task_type" or "source".
      domains: their names in the order that they have inside a chunk, first that of the default prompt. Where they are
        given, every example must be of one of them, and its loss is logged by domain.
      system: domain -> system prompt of its conversations that bring none; others get `DataConfig.system`.
    """

    by: str = "task_type"
    domains: tuple[str, ...] = ()
    system: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class DCoTConfig:
    """Several chains of thought in one response (see `jaxsft.data.dcot`); for the grouping "dcot".

    Attributes:
      draws: how often the chains of a question are drawn; epoch e sees draw e modulo `draws`.
      single: one chain a response, every chain once an epoch: the chain-of-thought baseline.
      seed: of the draws.
    """

    draws: int = 3
    single: bool = False
    seed: int = 0


@dataclasses.dataclass
class DataConfig:
    """What is trained or scored on.

    Attributes:
      path: shorthand for one source; used together with `rows` and `fields` when `sources` is empty.
      rows: see `SourceConfig.rows`.
      fields: see `SourceConfig.fields`.
      sources: a mixture of sources.
      template: "auto" (the tokenizer's own chat template; error if it has none), one of the built-in ones ("chatml",
        "llama2", "alpaca", "plain", "raw", "openchat"), or the path of a `.jinja` file.
      condition: what the template's variable `condition` is, where `classes` give none: "auto" is none in training, and
        in tasks the condition with which the model is asked (see `ClassesConfig.inference`).
      system: system prompt of conversations that bring none; "" adds none.
      max_length: tokens of a row, and of one example at most.
      packing: several examples in a row (they never see each other); False gives one example a row.
      truncation: what happens to an example longer than `max_length`: "right" cuts its end, "drop" drops it, "error"
        stops the run. An example left without supervised token is dropped and counted under every policy.
      supervise: "assistant" (answers only) or "all" (every token but the first).
      classes: what records of different quality or kind are conditioned on and weighted by.
      weighting: over what loss weights are spread: every "token" has its own; or each supervised "turn", or each
        "example", has its weights divided by its number of supervised tokens.
      grouping: how examples stand together in a row, which packing never splits: "example" (each by itself),
        "preference" (the chosen and the rejected answer of a pair, each within half of `max_length`), "mixup" (random
        pairs of one from the better half by `score` and one from the other, likewise), "domain" (chunks of one example
        of each of `mixture.domains`) or "dcot" (each by itself, made of chains of thought).
      attention_unit: what a token may look back on: its "example", its "group", or the whole "row".
      mixture: domains and their system prompts.
      dcot: how chains of thought become responses.
      max_examples_per_row: bound on E, the example slots of a packed row.
      cache_dir: folder of the token cache; "" is `~/.cache/jaxsft`.
      max_dropped: the largest share of examples that may be dropped before the run stops.
      scores: a table of scores of these examples, as `scripts/run.py` makes them; "" is none.
      score: the column of `scores` by which examples are ranked.
      keep: the share of the examples that is trained on, those with the highest score; 1.0 is all.
    """

    path: str = ""
    rows: str = ""
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    sources: list[SourceConfig] = dataclasses.field(default_factory=list)
    template: str = "auto"
    condition: str = "auto"
    system: str = ""
    max_length: int = 1024
    packing: bool = True
    truncation: str = "right"
    supervise: str = "assistant"
    classes: ClassesConfig = dataclasses.field(default_factory=ClassesConfig)
    weighting: str = "token"
    grouping: str = "example"
    attention_unit: str = "example"
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)
    dcot: DCoTConfig = dataclasses.field(default_factory=DCoTConfig)
    max_examples_per_row: int = 64
    cache_dir: str = ""
    max_dropped: float = 0.2
    scores: str = ""
    score: str = "confidence"
    keep: float = 1.0

    def all_sources(self) -> list[SourceConfig]:
        """`sources`, or the one that `path`, `rows` and `fields` are short for."""
        return self.sources or [SourceConfig(path=self.path, rows=self.rows, fields=self.fields)]


@dataclasses.dataclass
class ModelConfig:
    """The model that training starts from.

    Attributes:
      path: a Hugging Face folder or hub name.
      init: "pretrained" loads the weights; "random" draws new ones (the folder needs only `config.json` and tokenizer).
      dtype: compute dtype, "float32", "bfloat16", or "auto" (bfloat16 on TPU and GPU, float32 on CPU).
      param_dtype: dtype of frozen parameters, likewise; trained parameters are always float32.
      remat: what the backward pass recomputes: "none", "dots" (keeps matrix products) or "block" (keeps layer inputs).
      attention: "auto" or "xla".
    """

    path: str = ""
    init: str = "pretrained"
    dtype: str = "auto"
    param_dtype: str = "auto"
    remat: str = "block"
    attention: str = "auto"


@dataclasses.dataclass
class LoRAConfig:
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685); rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.

    Attributes:
      rank: r.
      alpha: the update is scaled by alpha / r, with `rslora` by alpha / sqrt(r).
      dropout: on the adapter's input, in training; none on the head's and the embedding's.
      rslora: see `alpha`.
      targets: logical-path patterns of the linear maps that get an adapter, see `jaxsft.models.layout.matches`.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    targets: tuple[str, ...] = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")


@dataclasses.dataclass
class AdapterConfig:
    """What is trained.

    Attributes:
      kind: "none" is full fine-tuning, "lora" trains adapters over a frozen base.
    """

    kind: str = "none"
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)


@dataclasses.dataclass
class RegularizersConfig:
    """What is added to any objective; a coefficient of 0 is none.

    Attributes:
      neftune_alpha: NEFTune's alpha: uniform noise on the embedded tokens in training, its size alpha / sqrt(L D) with
        the example's length L and the model's width D. Papers use 5 to 15.
      kl_to_base: coefficient of the mean over supervised tokens of KL(base || model); the base is the model that the
        run starts from. Full fine-tuning keeps its parameters for it.
      l2_to_start: coefficient of half the squared distance of the trained parameters from where they started, which
        are kept for it. Under LoRA these are the factors.
      ewc: coefficient of half the squared distance weighted by the diagonal Fisher information at the start; keeps two
        copies of the parameters. For full fine-tuning.
      ewc_data: what the Fisher information is of: data that the start knows and the run should not forget.
      ewc_examples: how many examples of it, drawn at random, are used.
      l1: coefficient of the sum of magnitudes.
      l1_on: of what: "change" (of the trained parameters from their start) or "weights" (themselves; under LoRA the
        factors, which makes the adapter sparse).
      l1_proximal: shrink after each step, by learning rate times coefficient, instead of a term in the gradient: this
        makes exact zeros.
    """

    neftune_alpha: float = 0.0
    kl_to_base: float = 0.0
    l2_to_start: float = 0.0
    ewc: float = 0.0
    ewc_data: DataConfig = dataclasses.field(default_factory=DataConfig)
    ewc_examples: int = 256
    l1: float = 0.0
    l1_on: str = "change"
    l1_proximal: bool = False


@dataclasses.dataclass
class ObjectiveConfig:
    """The loss.

    Attributes:
      name: which loss; each is a file of `jaxsft/objectives`.
      reduction: "token_mean" (sum of weighted losses over sum of weights) or "example_mean" (mean over examples of
        their weighted mean, in which a weight that all of an example's tokens share cancels); both over the whole
        global batch.
      z_loss: coefficient of the squared log-partition.
      label_smoothing: mass given to the uniform distribution; for "dpo" and "mrpo" the share of pairs taken to be
        labelled the wrong way round, below 0.5.
      beta: how strongly a log-ratio to the reference counts, per nat; must be set for "minor_sft" and for the losses on
        pairs, "dpo", "ipo", "minor_dpo" and "mrpo" (0.1 is usual).
      ratio: for the same five: the log-ratio is the "sum" over an answer's targets (the papers') or their "mean".
      form: for "minor_sft": the loss as a "weight" without gradient, or "closed"; both have the same gradient.
      chunk_size: tokens per device whose logits exist at once.
      reference_free: for "dpo" and "ipo": take every answer to be equally likely under the reference.
      sft_weight: for the losses on pairs: weight of the negative log-likelihood of the chosen answers, a mean over
        their tokens, that is added.
      reference_weights: for "mrpo": the weight of each of `config.reference.models`, of sum 1; empty is by how well
        each tells the pair apart.
      reference_clip: for "mrpo": how far the other references may be from the first, as a share of its log-probability.
      adaptive_clip: for "mrpo": divide that share between the two answers by their log-probabilities.
      swap_weights: for "mrpo" of two references: exchange their weights, as the authors' code does.
      mu: for "sftmix": what the mixed loss counts beside that of the examples themselves; 0 is plain fine-tuning.
      mix_alpha: for "sftmix": the shares of a mixture are drawn from Beta(mix_alpha, mix_alpha).
      lambda_scope: for "sftmix": what shares one draw: a "pair", a "token" of it, or the whole "batch".
      mix_hidden: for "sftmix": the states that are mixed: "post_norm" (what the head reads) or "pre_norm" (before the
        final norm).
      mix_reduction: for "sftmix": the mixed loss is the "mean" over mixed tokens, or the "sum" over them divided by
        what the examples' own sum is divided by.
      regularizers: see `RegularizersConfig`.
    """

    name: str = "sft"
    reduction: str = "token_mean"
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    beta: float | None = None
    ratio: str = "sum"
    form: str = "weight"
    chunk_size: int = 1024
    reference_free: bool = False
    sft_weight: float = 0.0
    reference_weights: tuple[float, ...] = ()
    reference_clip: float = 0.1
    adaptive_clip: bool = True
    swap_weights: bool = False
    mu: float = 0.2
    mix_alpha: float = 0.5
    lambda_scope: str = "pair"
    mix_hidden: str = "post_norm"
    mix_reduction: str = "mean"
    regularizers: RegularizersConfig = dataclasses.field(default_factory=RegularizersConfig)


@dataclasses.dataclass
class ReferenceConfig:
    """Frozen models that the trained one is compared with; the deviation from the first is logged.

    Attributes:
      models: model folders, hub names, workdirs, or "start", which is the model that the run starts from. Each scores
        every example once before training, one number an example, kept in the workdir. An objective that needs a
        reference takes "start" where none is named.
      online: ask the base under an adapter at every step instead, with the adapter switched off.
    """

    models: tuple[str, ...] = ()
    online: bool = False


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
class MeshConfig:
    """Devices per mesh axis; one of them may be -1, which takes what is left.

    Attributes:
      replica: data parallelism with replicated parameters (across slices).
      fsdp: data parallelism with sharded parameters.
      tensor: each layer's matrices split.
    """

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1


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
class TaskConfig:
    """One thing to measure of a model.

    Attributes:
      name: what its figures are called where several tasks are measured; each then has one of its own.
      task: "perplexity" (negative log-likelihood of conversations or text), "multiple_choice" (the likeliest of the
        given answers), "generation" (the answer that the model writes) or "deviation" (how far the model moved from
        another on the data).
      data: the rows to score; packed or not, the figures do not change. `template` "auto" is the run's own.
      batch_size: rows of a batch; for "generation": prompts answered at once.
      normalize: for "multiple_choice": divide an answer's log-likelihood by its "tokens", "bytes" or "none".
      max_new_tokens: for "generation": where an answer ends at the latest; 0 is as many tokens as the longest
        reference and its end of turn need.
      chains: for "generation": ask for so many chains of thought and judge the answer behind them alone (see
        `jaxsft.data.dcot`); 0 asks as the records stand.
    """

    name: str = ""
    task: str = "perplexity"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    batch_size: int = 16
    normalize: str = "none"
    max_new_tokens: int = 0
    chains: int = 0


@dataclasses.dataclass
class EvalConfig:
    """Evaluation during training: token-weighted negative log-likelihood, and tasks.

    Attributes:
      path: see `DataConfig.path`; "" is none. Template, max_length and supervise follow the training data, and so
        do the conditions of classes; a record of no known class has that of `ClassesConfig.inference`. No weight does
        but those that records and messages have.
      rows: see `SourceConfig.rows`.
      fields: see `SourceConfig.fields`.
      tasks: what is measured besides, each under its name; a "deviation" is that from the base under an adapter.
      every: steps between evaluations; 0 is only before the first step and after the last.
      batch_size: rows of an evaluation batch.
    """

    path: str = ""
    rows: str = ""
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    tasks: list[TaskConfig] = dataclasses.field(default_factory=list)
    every: int = 0
    batch_size: int = 16


@dataclasses.dataclass
class LogConfig:
    """What is written while training.

    Attributes:
      every: steps between lines of `metrics.jsonl`.
      tensorboard: event files in the workdir.
      wandb_project: a Weights & Biases project; "" is none (needs the extra `wandb`).
    """

    every: int = 1
    tensorboard: bool = True
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


@dataclasses.dataclass
class EvaluateConfig(TaskConfig):
    """One task that `scripts/evaluate.py` measures; see `TaskConfig`.

    Attributes:
      model: dtypes and attention; its path is `--model`.
      reference: for "deviation": the model that is moved away from; "" is the one that a run started from.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    reference: str = ""


@dataclasses.dataclass
class SuiteConfig:
    """Several tasks that `scripts/evaluate.py` measures on one model.

    Attributes:
      tasks: see `TaskConfig`.
      model: see `EvaluateConfig`.
      reference: likewise, of every "deviation".
    """

    tasks: list[TaskConfig] = dataclasses.field(default_factory=list)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    reference: str = ""


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
