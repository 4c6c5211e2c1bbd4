"""What distinguishes one decoder from another, as data; nothing else in the package asks for a model's name."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from jaxsft.errors import UserError

NEW_IDS = "new_token_ids"  # in a `config.json`: the tokens that `jaxsft.tokens` added, and their ids
LONGEST_UNIT = 8  # layers of a repeating pattern of kinds (Gemma 3: five local ones and a global one)


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary frequencies.

    Attributes:
      theta: the base.
      kind: "default", "linear" (all frequencies divided by `factor`) or "llama3" (the slow ones divided by `factor`,
        with a smooth passage between the wavelengths original/low and original/high).
      factor: see `kind`.
      low: `low_freq_factor` of "llama3".
      high: `high_freq_factor` of "llama3".
      original: `original_max_position_embeddings` of "llama3", in tokens.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 0

    def scaling(self) -> dict[str, Any]:
        """The fields of `rope_scaling`, without the base."""
        if self.kind == "default":
            return {"rope_type": "default"}
        fields = {"rope_type": self.kind, "factor": self.factor}
        if self.kind == "llama3":
            fields |= {
                "low_freq_factor": self.low,
                "high_freq_factor": self.high,
                "original_max_position_embeddings": self.original,
            }
        return fields


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ from layer to layer.

    Attributes:
      window: a query sees the keys at distance below `window`; None is all earlier ones.
      rope: rotary frequencies.
      post_ln: norms after the sums with the residual (Post-LN) instead of before attention and MLP (Pre-LN).
    """

    window: int | None = None
    rope: Rope = Rope()
    post_ln: bool = False


@dataclasses.dataclass(frozen=True)
class Stack:
    """`repeats` times the same unit of layers, run by one scan."""

    unit: tuple[LayerKind, ...]
    repeats: int
    first: int  # index of its first layer

    def layer(self, position: int, row: int) -> int:
        """Index in the model of the layer at `position` of the unit's repetition `row`."""
        return self.first + row * len(self.unit) + position


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A decoder's static description.

    Attributes:
      family: a key of `jaxsft.models.families.FAMILIES`.
      vocab_size, embed_dim, mlp_dim, num_heads, num_kv_heads, head_dim: sizes.
      layers: the kind of every layer.
      activation: of the gated MLP: "silu", "gelu" or "gelu_tanh".
      norm_eps: epsilon of the RMS norms.
      unit_offset: norms scale by 1 + w (weights stored around 0).
      qkv_bias, o_bias, mlp_bias: which linear maps have biases.
      qk_norm: RMS norm of every query and key head, before rotation.
      post_norms: norms also after attention and MLP, before their sums with the residual.
      attn_scale: factor of the attention logits.
      attn_soft_cap, final_soft_cap: cap * tanh(logits / cap), or None.
      embed_scale: factor of the embeddings.
      tied: the head is the transposed embedding.
      max_positions: context the model was made for, in tokens.
      init_std: standard deviation of new matrices.
      source: the `config.json` it came from, as JSON; its other fields are written back at export.
    """

    family: str
    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerKind, ...]
    activation: str
    norm_eps: float
    unit_offset: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    post_norms: bool
    attn_scale: float
    attn_soft_cap: float | None
    final_soft_cap: float | None
    embed_scale: float
    tied: bool
    max_positions: int
    init_std: float
    source: str = dataclasses.field(default="{}", compare=False, repr=False)

    @property
    def num_layers(self) -> int:
        """Depth."""
        return len(self.layers)

    @property
    def n_post_layers(self) -> int:
        """How many layers are Post-LN: the first ones."""
        return sum(kind.post_ln for kind in self.layers)

    @property
    def new_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that were added to the model it came from, see `jaxsft.tokens`; () where none were."""
        return tuple(sorted(json.loads(self.source).get(NEW_IDS, {}).values()))

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The layers as few homogeneous stacks, in order."""
        return _stacks(self.layers)

    def with_post_layers(self, count: int, where: str) -> "Architecture":
        """Mix-LN (Li et al. 2024, arXiv:2412.13795): the first layers Post-LN, the others Pre-LN, as many parameters.

        Args:
          count: of Post-LN layers; 0 is Pre-LN, the depth is Post-LN.
          where: what asks for it, for the error.

        Raises:
          UserError: if there are fewer layers, or the family has norms of its own after attention and MLP.
        """
        if count > self.num_layers:
            raise UserError(f"{where} asks for {count} Post-LN layers, but the model has {self.num_layers}.")
        if count and self.post_norms:
            raise UserError(
                f"{where} asks for {count} Post-LN layers, but a {self.family} model has norms on both sides of "
                "attention and MLP, which are neither Post-LN nor Pre-LN; take another family, such as llama."
            )
        layers = tuple(dataclasses.replace(kind, post_ln=i < count) for i, kind in enumerate(self.layers))
        return dataclasses.replace(self, layers=layers)

    @staticmethod
    def from_hf(config: Mapping[str, Any], where: str = "config.json") -> "Architecture":
        """Reads the contents of a `config.json` of either dialect.

        Raises:
          UserError: naming the field, for an unknown family or an option that the decoder does not have.
        """
        from jaxsft.models import families  # it builds this class

        return families.read(config, where)

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """The contents of a `config.json` that readers of both dialects understand.

        Args:
          dtype: that of the tensors beside it.
        """
        from jaxsft.models import families

        return families.write(self, dtype)


def post_layers_of(alpha: float, depth: int) -> int:
    """Mix-LN's share of Post-LN layers as their number: alpha * depth rounded to the nearest, halves down.

    The paper speaks of the floor; its runs at 33 % of 24 layers have 8, which only rounding gives.
    """
    return max(math.ceil(alpha * depth - 0.5 - 1e-9), 0)


def _stacks(layers: tuple[LayerKind, ...]) -> tuple[Stack, ...]:
    stacks, first = [], 0
    while first < len(layers):
        best = (1, 1)  # layers of the unit, repeats
        for size in range(1, LONGEST_UNIT + 1):
            unit, repeats = layers[first : first + size], 1
            while layers[first + repeats * size : first + (repeats + 1) * size] == unit:
                repeats += 1
            if (repeats > 1 or size == 1) and size * repeats > best[0] * best[1]:
                best = (size, repeats)
        stacks.append(Stack(layers[first : first + best[0]], best[1], first))
        first += best[0] * best[1]
    return tuple(stacks)
