"""The batch: the one schema that crosses from the data into models, objectives and training."""

import dataclasses
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
DOMAIN = "domain/"  # what the names of domains begin with among the extras
TYPE = "type"  # the extra with the types of examples


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed examples; every array has a static shape.

    A row holds *groups* (what packing places: a preference pair, or usually one example) of *attention units*, which
    hold *examples*. B is rows, T the row length, E the number of example slots of a row.

    Attributes:
      tokens: int32 [B, T], the inputs; 0 in padding.
      positions: int32 [B, T], rotary positions, restarting at every attention unit.
      segment_ids: int32 [B, T], attention unit, 1.. within a row, 0 = padding. Position q sees k iff k <= q and their
        ids are equal and positive.
      example_ids: int32 [B, T], example inside the row, 1..E, 0 = padding. Differs from `segment_ids` only where a
        recipe lets examples see each other.
      targets: int32 [B, T], the token at t + 1 of the same example; 0 where there is none.
      weights: float32 [B, T], loss weight of target t; 0 where nothing is supervised. The mask is this array and never
        a sentinel token id.
      extras: what a recipe needs besides, name -> [B, T] or [B, E]; slot e - 1 belongs to example id e. Always holds
        `example_index` int32 [B, E], the index of the example in its data set, -1 in empty slots; where examples stand
        in groups of several, `member` int32 [B, E], the place of the example in its group, 0 being the first; where
        the data has domains, `domain/NAME` int32 [B, E] for each, 1 for its examples and 0 for others;
        where examples have types, `type` int32 [B, E], -1 for those that have none and in empty slots.
    """

    tokens: Array
    positions: Array
    segment_ids: Array
    example_ids: Array
    targets: Array
    weights: Array
    extras: dict[str, Any]

    @property
    def num_slots(self) -> int:
        """E, the static number of example slots of a row."""
        return self.extras["example_index"].shape[-1]
