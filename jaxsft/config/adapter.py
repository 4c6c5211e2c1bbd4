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
      targets: logical-path patterns of the linear maps that get an adapter, see `jaxsft.models.layout.matches`.
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
class AdapterConfig:
    """What is trained.

    Attributes:
      kind: "none" is full fine-tuning, "lora" and "spp" train adapters over a frozen base.
      start: what the adapter starts from: a folder in PEFT's format or of `--format=adapter`, local or a hub name, or
        the workdir of a run of the same kind; "" is a fresh adapter.
    """

    kind: str = "none"
    start: str = ""
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    spp: SPPConfig = dataclasses.field(default_factory=SPPConfig)
