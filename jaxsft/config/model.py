"""The model, and the devices it lives on."""

import dataclasses


@dataclasses.dataclass
class NewModelConfig:
    """Of a model that is trained from random weights: what its `config.json` does not say, or says otherwise.

    Attributes:
      n_post_layers: Mix-LN (Li et al. 2024, arXiv:2412.13795): so many Post-LN layers, then Pre-LN ones; 0 is Pre-LN,
        the depth is Post-LN, None is what `config.json` says.
      post_ln_alpha: the same as a share of the depth, rounded, halves down.
      init_std: standard deviation of new matrices, instead of `initializer_range`.
      embed_std: of the embedding; None is that of the matrices.
      scaled_init: the maps that write to the residual stream (`o_proj`, `down_proj`) are drawn with 1 / sqrt(2 layers)
        of that deviation, in Pre-LN layers.
    """

    n_post_layers: int | None = None
    post_ln_alpha: float | None = None
    init_std: float | None = None
    embed_std: float | None = None
    scaled_init: bool = False


@dataclasses.dataclass
class ModelConfig:
    """The model that training starts from.

    Attributes:
      path: a Hugging Face folder or hub name.
      base: where `path` is an adapter that is to be measured or merged: the folder or hub name of its base, instead of
        the one that it names; "" takes that.
      init: "pretrained" loads the weights; "random" draws new ones (the folder needs only `config.json` and tokenizer).
      new: of those with `init` "random".
      dtype: compute dtype, "float32", "bfloat16", or "auto" (bfloat16 on TPU and GPU, float32 on CPU).
      param_dtype: dtype of frozen parameters, likewise; trained parameters are always float32.
      remat: what the backward pass recomputes: "none", "dots" (keeps matrix products) or "block" (keeps layer inputs).
      attention: "auto" or "xla".
      quantization: how the layers' linear maps are stored under an adapter: "none", "nf4" (QLoRA; 4.5 bits a weight) or
        "int8" (8.5 bits). Embedding, head, norms and biases stay in `param_dtype`.
      double_quantization: stores the scales of the blocks in 8 bits too (4.127 and 8.127 bits a weight).
    """

    path: str = ""
    base: str = ""
    init: str = "pretrained"
    new: NewModelConfig = dataclasses.field(default_factory=NewModelConfig)
    dtype: str = "auto"
    param_dtype: str = "auto"
    remat: str = "block"
    attention: str = "auto"
    quantization: str = "none"
    double_quantization: bool = True


@dataclasses.dataclass
class MeshConfig:
    """Devices per mesh axis; one of them may be -1, which takes what is left.

    Attributes:
      replica: data parallelism with replicated parameters (across slices).
      fsdp: data parallelism with sharded parameters.
      tensor: each layer's matrices split.
      submodel: the sub-models of `TrainConfig.submodels` split, each with all of the other axes to itself.
    """

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1
    submodel: int = 1
