"""What the step works on: the train state, which a checkpoint holds, and what never changes, which none does."""

import dataclasses
from typing import Any, NamedTuple

import jax

from jaxsft.adapters.method import Parts

Tree = Any


class Horizon(NamedTuple):
    """How long a run is, as data, so that one compiled step serves runs of several lengths.

    Attributes:
      steps: int32 [], of the whole run.
      warmup: int32 [], of them in which the learning rate climbs.
      decay: int32 [], of them, the last, in which it falls.
    """

    steps: jax.Array
    warmup: jax.Array
    decay: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that the pure step maps to its successor.

    Attributes:
      step: int32 [], optimizer steps done; also the whole state of the data.
      params: trained parameters, float32.
      opt_state: the optimizer's.
      key: uint32 [2], raw data of the PRNG key from which every step's randomness is folded.
      horizon: the run's length.
      aux: checkpointed but not differentiated: {"method": the tuning method's, "ema": averaged params, if
        asked for}.
    """

    step: jax.Array
    params: Tree
    opt_state: Tree
    key: jax.Array
    horizon: Horizon
    aux: Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """What the step reads and never changes: not differentiated, and in no checkpoint.

    Attributes:
      method: the tuning method's frozen arrays; see `jaxsft.adapters.method.Parts`.
      start: see `Parts.start`; on resume it is made from the base again.
      fisher: see `Parts.fisher`; on resume it is read from the workdir.
    """

    method: Tree
    start: Tree = None
    fisher: Tree = None

    def parts(self, params: Tree, aux: Tree) -> Parts:
        """With the trained parameters and the method's state: all that a method or an objective sees."""
        return Parts(params, self.method, aux, self.start, self.fisher)
