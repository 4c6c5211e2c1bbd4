"""Merging: models made of models."""

import dataclasses

from jaxsft.config.data import DataConfig
from jaxsft.config.evaluation import TaskConfig
from jaxsft.config.model import MeshConfig


@dataclasses.dataclass
class MergeRule:
    """Other numbers for some tensors; of several rules that name a tensor the last that sets a field decides it.

    Attributes:
      paths: patterns of logical paths, such as "layers.*.attn" or "embed"; one that names nothing is refused.
      weights: as `MergeConfig.weights`; () leaves them.
      gradient: as `MergeConfig.gradient`; () leaves it.
      density: as `MergeConfig.density`; () leaves it.
    """

    paths: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    gradient: tuple[tuple[float, ...], ...] = ()
    density: tuple[float, ...] = ()


@dataclasses.dataclass
class MergeConfig:
    """Models that `scripts/merge.py` makes one of. A field that the method does not read must be left alone.

    Attributes:
      method: one of `jaxsft.merging.registry.METHODS`, or of adapters "lora_factor", "lora_concat" or "lora_svd";
        docs/merging.md says which when.
      models: folders, hub names or workdirs; dtype, tokenizer and chat template are those of the last.
      base: what the models were tuned from; "" is the common start of models that are workdirs.
      weights: one for each model; () is 1 for each.
      gradient: weights that change with depth: tuples like `weights` at equal distances from the first layer to the
        last, straight lines between them; the embedding has the first, final norm and head have the last.
      rules: other weights, gradients or densities for tensors whose paths match.
      density: the share of entries of task vectors that is kept, one for all models or one for each (DARE, DELLA: the
        probability; SCE: of positions).
      scale: factor of the merged task vector.
      normalize: whether sums are divided by the weights in them; None is the method's own default.
      trim: how TIES counts what it keeps: "exact", or "threshold" as its authors' code does.
      rescale: how thinned task vectors are scaled up: "density" (divided by the probability), "l1" (to their L1 norm),
        "none"; "auto" is the method's own default.
      gamma: the share of largest entries that breadcrumbs drop.
      epsilon: DELLA's probabilities are density - epsilon to density + epsilon.
      per_row: whether NuSLERP and model stock take angles row by row instead of by whole tensors.
      shrink: RegMean's factor of what inputs have in common; 1 is plain least squares.
      fisher_norm: whether each model's Fisher information is first divided by its norm.
      data: of "fisher" and "regmean", on which every model is measured; without path and sources each run's own.
      examples: how many of them.
      rank: of the adapter that "lora_svd" leaves.
      vocabulary: "same" refuses models of different tokenizers; "last" takes that of the last model, and tokens that
        another lacks have the last model's rows.
      dtype: of the files: "float32", "bfloat16", or "auto" for that of the last model.
      seed: of masks and examples drawn at random.
    """

    method: str = "linear"
    models: tuple[str, ...] = ()
    base: str = ""
    weights: tuple[float, ...] = ()
    gradient: tuple[tuple[float, ...], ...] = ()
    rules: list[MergeRule] = dataclasses.field(default_factory=list)
    density: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    normalize: bool | None = None
    trim: str = "exact"
    rescale: str = "auto"
    gamma: float = 0.01
    epsilon: float = 0.15
    per_row: bool = False
    shrink: float = 0.9
    fisher_norm: bool = False
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    examples: int = 256
    rank: int = 16
    vocabulary: str = "same"
    dtype: str = "auto"
    seed: int = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


@dataclasses.dataclass
class SearchConfig:
    """A merge whose weights `scripts/search_merge.py` chooses by validation data. Never let that be the test data.

    Attributes:
      merge: what is merged and how; the search starts from its weights.
      tasks: of the kind "perplexity": what the merged model is measured on.
      factors: one for each task; what is made least is the sum of factor times negative log-likelihood a token. () is 1
        for each.
      kind: "grid" (all weights that are multiples of 1 / `cells`), or "nelder_mead" (a simplex that walks downhill, for
        more models or finer weights).
      cells: of the grid: into so many parts the range of a weight is cut.
      most: the largest weight that is tried, where the merge does not divide by their sum; where it does they add up to
        1.
      budget: so many weights are tried at most.
    """

    merge: MergeConfig = dataclasses.field(default_factory=MergeConfig)
    tasks: list[TaskConfig] = dataclasses.field(default_factory=list)
    factors: tuple[float, ...] = ()
    kind: str = "grid"
    cells: int = 4
    most: float = 1.0
    budget: int = 50
