"""Fine-tuned models stored as what changed of their base."""

import dataclasses

from jaxsft.config.model import MeshConfig


@dataclasses.dataclass
class CompressConfig:
    """What `scripts/compress.py` stores of a model, after Delta-CoMe (Ping et al. 2024, arXiv:2406.08903).

    Attributes:
      model: a Hugging Face folder, hub name, workdir or adapter.
      base: the model folder or hub name that it was tuned from; "" is the start of a workdir, or the base of an
        adapter.
      targets: logical-path patterns of the matrices whose changes are compressed; any other tensor that changed is
        stored as it is.
      bits: of the groups of singular vectors, largest singular values first; 1 to 16.
      columns: how many singular vectors each group has; where the last group's number is left out, it takes what
        `size_ratio` leaves.
      size_ratio: the size of a matrix in bfloat16 over that of its compressed change; not read where `columns` are all
        given.
      counts: what `size_ratio` counts: all that is "stored", or the "codes" alone, as the paper does.
      group_size: entries of a singular vector that share a scale and a zero point.
      refine: whether a scale is narrowed where that lowers the squared error of its entries, and singular values make
        up for it; without it the codes span from the smallest entry to the largest, as in the paper.
      dtype: of the model that is restored, and of what is stored as it is: "float32", "bfloat16", or "auto" for the
        model's own.
    """

    model: str = ""
    base: str = ""
    targets: tuple[str, ...] = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")
    bits: tuple[int, ...] = (8, 3, 2)
    columns: tuple[int, ...] = (2, 32)
    size_ratio: float = 16.0
    counts: str = "stored"
    group_size: int = 128
    refine: bool = True
    dtype: str = "auto"
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
