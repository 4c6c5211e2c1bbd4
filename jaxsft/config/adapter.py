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
class AdapterConfig:
    """What is trained.

    Attributes:
      kind: "none" is full fine-tuning, "lora" trains adapters over a frozen base.
    """

    kind: str = "none"
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
