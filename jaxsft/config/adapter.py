"""What is trained: all of the model, or an adapter of some kind over a frozen base."""

import dataclasses


@dataclasses.dataclass
class LoRAConfig:
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685); rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.

    Attributes:
      rank: r.
      alpha: the update is scaled by alpha / r, with `rslora` by alpha / sqrt(r).
      dropout: on the adapter's input, in training; none on the head's and the embedding's.
      rslora: see `alpha`.
      targets: logical-path patterns of the linear maps that get an adapter, see `jaxsft.models.layout.matches`. "embed"
        moves the embedding of every token; where it is tied, the head computes with the same update.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    targets: tuple[str, ...] = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")


@dataclasses.dataclass
class SPPConfig:
    """Sparsity-preserving fine-tuning of a pruned model (Lu et al. 2024, arXiv:2405.16057).

    Attributes:
      rank: r, rows of A; it must divide the outputs of every targeted map.
      scale: s, by which the update is multiplied.
      dropout: on the adapter's input, in training; none on the head's and the embedding's.
      targets: logical-path patterns of the linear maps that get an adapter, see `jaxsft.models.layout.matches`.
    """

    rank: int = 16
    scale: float = 2.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")


@dataclasses.dataclass
class LoRAMoEConfig:
    """LoRAMoE: routed low-rank experts, balanced by a constraint (Dou et al. 2023, arXiv:2312.09979).

    Attributes:
      experts: N, of each targeted linear map, which has a router of its own.
      rank: r of each expert.
      alpha: the update is scaled by alpha / r.
      dropout: on the experts' input, in training; the router sees all of it.
      dropout_mode: "shared" drops the same numbers for all experts of a map; "per_expert" drops for each by itself, as
        the authors' code does, and needs N products where the former needs one.
      targets: logical-path patterns of the linear maps that get experts, see `jaxsft.models.layout.matches`; any but
        the head.
      delta: how far the experts of an example's type are to differ from the others, from 0 (all alike) to 1.
      beta: coefficient of the constraint; 0 leaves it out.
      form: what is made small of the weighted importances: their squared coefficient of variation ("cv_squared"), or
        their variance over their mean ("var_over_mean", as the paper prints it; it grows with an example's length).
      sign: "published" weighs the experts of an example's type by 1 + delta, which pushes them *down* on it; "attract"
        by 1 - delta, which draws them to it.
      tokens: whose routing counts: that of "valid" tokens, or of "all" positions, the padding behind the last example
        of a row included, as in the authors' code (needs `config.data.packing` False).
      by_length: divide an example's importances by its number of tokens.
      scope: over what the variance is taken: the experts of each example ("per_example"), of all examples of each
        `microbatch_rows` rows ("microbatch"), or of the whole batch ("global"). The latter two do not add up over
        micro-batches, so they need `config.accumulate` 1.
      microbatch_rows: rows that follow each other in the batch and stand for one device's share of it, whatever the
        mesh; must divide `config.batch_size`.
      expert_types: the type of each expert; () is 1 for the first half and 0 for the second. Examples have theirs by
        `config.data.types`.
      top_k: only so many experts of largest weight act on a token, their weights scaled to sum to 1; 0 is all. No part
        of the method.
    """

    experts: int = 6
    rank: int = 4
    alpha: float = 32.0
    dropout: float = 0.05
    dropout_mode: str = "shared"
    targets: tuple[str, ...] = ("layers.*.mlp.*_proj",)
    delta: float = 0.1
    beta: float = 0.1
    form: str = "cv_squared"
    sign: str = "published"
    tokens: str = "valid"
    by_length: bool = False
    scope: str = "per_example"
    microbatch_rows: int = 1
    expert_types: tuple[int, ...] = ()
    top_k: int = 0


@dataclasses.dataclass
class SpIELConfig:
    """Sparse fine-tuning that changes its support (Ansell et al. 2024, arXiv:2401.16405).

    Attributes:
      variant: "ag" grows weights by their accumulated gradients (with the optimizer "adamw"), "ma" by the momenta that
        SM3 estimates for them (with "sm3").
      weights: how many are tuned in all targeted maps together, shared out by the maps' sizes. Where it is 0, `density`
        or `lora_rank` says so, and where all are 0, a density of 0.01.
      density: how many, as a share of all parameters of the model.
      lora_rank: how many, as those that LoRA of this rank trains on the same targets.
      reselect_every: R, steps between two changes of the support.
      phase: gamma, steps before a change over which the candidates' gradients are accumulated.
      rate: xi, the share of the support that may be replaced, before it falls with the steps.
      policy: how it falls: "linear" (the first change may replace all) or "cosine".
      dtype: of the deltas, "float32" or "bfloat16".
      parity: whether the authors' code is followed in all its ways, see docs/methods/spiel.md.
      targets: logical-path patterns of the linear maps in layers whose weights are tuned.
    """

    variant: str = "ag"
    weights: int = 0
    density: float = 0.0
    lora_rank: int = 0
    reselect_every: int = 20
    phase: int = 5
    rate: float = 0.2
    policy: str = "linear"
    dtype: str = "float32"
    parity: bool = False
    targets: tuple[str, ...] = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")


@dataclasses.dataclass
class RowsConfig:
    """Single rows of the embedding: those of new tokens, and nothing else of the model.

    Attributes:
      ids: whose rows are trained; () is those that `scripts/add_tokens.py` added to the model.
      targets: "embed", and "head" of a model whose head is not tied to it.
    """

    ids: tuple[int, ...] = ()
    targets: tuple[str, ...] = ("embed",)


@dataclasses.dataclass
class AdapterConfig:
    """What is trained.

    Attributes:
      kind: "none" is full fine-tuning; "lora", "spp" and "loramoe" train adapters over a frozen base, "spiel"
        single weights of it, "rows" the embeddings of new tokens.
      start: what the adapter starts from: a folder in PEFT's format or of `--format=adapter`, local or a hub name, or
        the workdir of a run of the same kind; "" is a fresh adapter.
    """

    kind: str = "none"
    start: str = ""
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    spp: SPPConfig = dataclasses.field(default_factory=SPPConfig)
    loramoe: LoRAMoEConfig = dataclasses.field(default_factory=LoRAMoEConfig)
    spiel: SpIELConfig = dataclasses.field(default_factory=SpIELConfig)
    rows: RowsConfig = dataclasses.field(default_factory=RowsConfig)
