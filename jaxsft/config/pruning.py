"""Models with zeros: what is pruned, and by what it is chosen."""

import dataclasses

from jaxsft.config.data import DataConfig
from jaxsft.config.model import MeshConfig, ModelConfig


@dataclasses.dataclass
class DSnoTConfig:
    """Dynamic sparse no training (Zhang et al. 2023, arXiv:2310.08915): kept and pruned weights are exchanged.

    Attributes:
      targets: logical-path patterns of the maps that are refined, of those that are pruned; () is none. The paper's
        code leaves out the MLP.
      cycles: exchanges of an output at most.
      threshold: the expected error of an output at which it is left alone.
      power: of the variance by which candidates are divided.
      paper: exchanges as the paper's code does, and not only where the expected error falls.
    """

    targets: tuple[str, ...] = ()
    cycles: int = 50
    threshold: float = 0.1
    power: float = 1.0
    paper: bool = False


@dataclasses.dataclass
class PruneConfig:
    """A model that `scripts/prune.py` sets weights of to zero.

    Attributes:
      model: a Hugging Face folder, hub name, workdir or adapter; computed in `dtype`, written in its own.
      data: what inputs are measured on; a hundred examples or so are enough (`rows`).
      score: what is pruned first: the smallest |W| times the norm of its input ("wanda") or |W| ("magnitude").
      sparsity: a share of the inputs of every output, such as "0.5", or "N:M", which keeps N of every M consecutive
        inputs.
      targets: logical-path patterns of the linear maps that are pruned.
      dsnot: refines which.
      batch_size: rows of a batch.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    score: str = "wanda"
    sparsity: str = "2:4"
    targets: tuple[str, ...] = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")
    dsnot: DSnoTConfig = dataclasses.field(default_factory=DSnoTConfig)
    batch_size: int = 16
