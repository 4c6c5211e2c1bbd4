"""Names and orientation of tensors in Hugging Face checkpoints, against logical paths."""

import math
import re
from typing import NamedTuple

from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.decoder import Decoder

IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")  # held by old checkpoints, computed here
# What of a multimodal checkpoint is not the language model, and how its files prefix the language model.
OTHER_TOWERS = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\..*")
TEXT_PREFIXES = {"language_model.": "", "model.language_model.": "model."}


class Tensor(NamedTuple):
    """A tensor of a checkpoint.

    Attributes:
      name: its key in the file.
      logical: its logical path.
      shape: its shape in the file.
      transposed: whether the file holds [out, in] where the tree holds [in, out].
    """

    name: str
    logical: str
    shape: tuple[int, ...]
    transposed: bool

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def tensors(decoder: Decoder) -> list[Tensor]:
    """All tensors of a model's checkpoint, embedding first, then layer by layer, final norm and head last."""
    found = []
    for logical, (leaf, row) in layout.flatten(decoder.arch, decoder.abstract_params()).items():
        shape = leaf.shape if row is None else leaf.shape[1:]
        transposed = logical.endswith(".kernel")
        shape = shape[::-1] if transposed else shape
        found.append(Tensor(tensor_name(decoder.arch, logical), logical, shape, transposed))
    last = {"norm.scale": 1, "head.kernel": 2}
    return sorted(found, key=lambda t: last.get(t.logical, 0))


def tensor_name(arch: Architecture, logical: str) -> str:
    """`layers.0.attn.q_proj.kernel` -> `model.layers.0.self_attn.q_proj.weight`."""
    module, _, kind = logical.rpartition(".")
    return f"{module_name(arch, module)}.{'bias' if kind == 'bias' else 'weight'}"


def module_name(arch: Architecture, logical: str) -> str:
    """`layers.0.attn.q_proj` -> `model.layers.0.self_attn.q_proj`."""
    whole = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    if logical in whole:
        return whole[logical]
    _, layer, *parts = logical.split(".")
    second = "pre_feedforward_layernorm" if arch.post_norms else "post_attention_layernorm"
    norms = {
        "input_norm": "input_layernorm",
        "post_attn_norm": "post_attention_layernorm",
        "pre_mlp_norm": second,
        "post_mlp_norm": "post_feedforward_layernorm",
    }
    parts[0] = {"attn": "self_attn", **norms}.get(parts[0], parts[0])
    return ".".join(["model", "layers", layer, *parts])


def plain_name(name: str) -> str | None:
    """A key of a file as that of a text-only checkpoint, or None if it is nothing of the language model."""
    if IGNORED.fullmatch(name) or OTHER_TOWERS.fullmatch(name):
        return None
    for prefix, plain in TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name
