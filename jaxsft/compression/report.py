"""What a compression has lost and what it takes, in numbers and in lines."""

import collections
from collections.abc import Iterable
from typing import NamedTuple

from jaxsft.compression.groups import Group
from jaxsft.models.weights import Tensor


class Figures(NamedTuple):
    """Of a tensor that changed and was stored.

    Attributes:
      tensor: which.
      file: the name of the file that it is in.
      groups: of its singular vectors; () for a tensor that is stored as it is, which loses nothing.
      size: bytes of its arrays.
      change: the squared norm of its change.
      error: that of what the stored change misses of it.
      cut: that of what the singular vectors that are left out hold of it.
    """

    tensor: Tensor
    file: str
    groups: tuple[Group, ...]
    size: int
    change: float = 0.0
    error: float = 0.0
    cut: float = 0.0

    @property
    def kind(self) -> str:
        """Such as `attn.q_proj`."""
        return ".".join(self.tensor.logical.split(".")[2:-1]) or self.tensor.logical.split(".")[0]

    @property
    def layer(self) -> str:
        """Such as `layer 3`; what is in none is as its kind."""
        head, *rest = self.tensor.logical.split(".")
        return f"layer {rest[0]}" if head == "layers" else head


class Shares(NamedTuple):
    """Of some compressed tensors together.

    Attributes:
      error: the norm of what is missed of the changes over that of the changes.
      energy: the share of the changes' squared norm in the singular vectors that are kept.
      bits: stored bits a weight.
    """

    error: float
    energy: float
    bits: float


def shares(figures: Iterable[Figures]) -> Shares:
    """Of one compressed tensor or more."""
    figures = list(figures)
    change = sum(one.change for one in figures)
    error, cut = sum(one.error for one in figures), sum(one.cut for one in figures)
    bits = 8 * sum(one.size for one in figures) / sum(one.tensor.size for one in figures)
    return Shares((error / change) ** 0.5, 1 - cut / change, bits)


def table(figures: Iterable[Figures]) -> list[str]:
    """A line for each kind of map, for each layer, and for all; none where nothing was compressed."""
    coded = [one for one in figures if one.groups]
    if not coded:
        return []
    layered = [one for one in coded if one.layer != one.kind]
    rows: dict[str, list[Figures]] = collections.defaultdict(list)
    for name, one in [*((one.kind, one) for one in coded), *((one.layer, one) for one in layered)]:
        rows[name].append(one)
    rows["all"] = coded
    width = max(map(len, rows))
    lines = [f"{'':{width}}   error  energy  bits a weight"]
    for name, held in rows.items():
        error, energy, bits = shares(held)
        lines.append(f"{name:{width}}  {100 * error:5.1f}%  {100 * energy:5.1f}%  {bits:13.3f}")
    return lines
