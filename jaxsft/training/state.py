"""The train state: everything that a checkpoint holds."""

import dataclasses
from typing import Any

import jax

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that the pure step maps to its successor.

    Attributes:
      step: int32 [], optimizer steps done; also the whole state of the data.
      params: trained parameters, float32.
      opt_state: the optimizer's.
      key: uint32 [2], raw data of the PRNG key from which every step's randomness is folded.
      aux: checkpointed but not differentiated: {"method": the tuning method's, "ema": averaged params, if
        asked for}.
    """

    step: jax.Array
    params: Tree
    opt_state: Tree
    key: jax.Array
    aux: Tree
