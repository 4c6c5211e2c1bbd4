"""The loss, what goes with it, and what the model is compared with."""

import dataclasses

from jaxsft.config.data import DataConfig


@dataclasses.dataclass
class RegularizersConfig:
    """What is added to any objective; a coefficient of 0 is none.

    Attributes:
      neftune_alpha: NEFTune's alpha: uniform noise on the embedded tokens in training, its size alpha / sqrt(L D) with
        the example's length L and the model's width D. Papers use 5 to 15.
      kl_to_base: coefficient of the mean over supervised tokens of KL(base || model); the base is the model that the
        run starts from, under an adapter without what `config.adapter.start` brought. Full fine-tuning keeps its
        parameters for it.
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
        pairs, "dpo", "ipo", "minor_dpo", "hinge" and "mrpo" (0.1 is usual).
      ratio: for the same six: the log-ratio is the "sum" over an answer's targets (the papers') or their "mean".
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
      consistency: for "max_match": what the divergence between a record and its views counts beside the loss of the
        record; 0 is plain fine-tuning on the records.
      views: for "max_match": the divergence is that of the worst view ("max") or the "mean" over a record's views.
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
    consistency: float = 1.0
    views: str = "max"
    regularizers: RegularizersConfig = dataclasses.field(default_factory=RegularizersConfig)


@dataclasses.dataclass
class ReferenceConfig:
    """Frozen models that the trained one is compared with; the deviation from the first is logged.

    Attributes:
      models: model folders, hub names, workdirs, or "start", which is the model that the run starts from. Each scores
        every example once before training, one number an example, kept in the workdir. An objective that needs a
        reference takes "start" where none is named.
      online: ask the base under an adapter at every step instead, with the adapter switched off; that is without what
        `config.adapter.start` brought.
    """

    models: tuple[str, ...] = ()
    online: bool = False
