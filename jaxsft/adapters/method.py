"""What a tuning method is: how trained and frozen arrays make up the model, and what it adds to the step.

Full fine-tuning and every adapter answer to the same protocol, so the step, the loop and the checkpoints know none of
them by name. A method is static (a frozen dataclass, closed over by the compiled step); its arrays live in
`TrainState`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import optax

from jaxsft.config import OptimizerConfig
from jaxsft.data.batch import Batch
from jaxsft.objectives.terms import Term

Tree = Any


class Parts(NamedTuple):
    """A tree for each life that an array can lead.

    Attributes:
      params: trained; float32; differentiated; in the checkpoint.
      frozen: never differentiated, never in an adapter's checkpoint, never copied.
      aux: checkpointed but not differentiated (indices, ages, averages); integers live here.
      start: what `params` were before the first step, like them in all else; None where no term of the loss asks.
      fisher: how much each of `params` mattered for other data, likewise (`jaxsft.scoring.fisher`).
    """

    params: Tree
    frozen: Tree
    aux: Tree
    start: Tree = None
    fisher: Tree = None


class Maintenance(NamedTuple):
    """Work on the state between steps, by a host clock: the loop calls it without knowing what it is.

    Attributes:
      due: steps done -> whether to run now.
      apply: pure function (train state, frozen) -> (train state, figures of what was done: name -> scalar), jitted by
        the caller with the state donated. The figures are written to the run's metrics.
    """

    due: Callable[[int], bool]
    apply: Callable[[Any, Tree], tuple[Any, dict[str, jax.Array]]]


class Method(Protocol):
    """A way to train a model; `Base` below has the answers of a method that needs nothing special."""

    def split(self, base: Tree, key: jax.Array) -> Parts:
        """The parts of a fresh run, from the base's parameters. Pure; runs under `jax.eval_shape` and `jax.jit`."""
        ...

    def axes(self, base_axes: Tree) -> Parts:
        """Logical axis names of the parts, from those of the base."""
        ...

    def compose(self, parts: Parts, probes: Tree) -> tuple[Tree, Tree | None]:
        """The model's parameters, and the adapter nodes for its linear maps (None: no adapters)."""
        ...

    def merge(self, parts: Parts) -> Tree:
        """The parameters of a plain model that computes the same, where the method defines that."""
        ...


class Base:
    """Defaults: a frozen base, no probes, no terms, no maintenance."""

    trains_base: bool = False  # whether the base's own weights are trained, and so wanted in float32
    decays_after: bool = False  # whether weight decay acts on the parameters as the optimizer has moved them
    observes_each: bool = False  # whether `observe` sees the gradients of each micro-batch, and not their sum
    ties: bool = False  # whether it may be targeted at an embedding that is tied to the head
    may_change: tuple[str, ...] = ("dropout",)  # settings that may differ where a run goes on from another's adapter

    @property
    def patterns(self) -> tuple[str, tuple[str, ...]]:
        """The config field that chooses among the base's arrays, and its logical-path patterns."""
        return "", ()

    def probes(self, parts: Parts) -> Tree:
        """Zero inputs differentiated beside the parameters; `observe` gets their gradients."""
        del parts
        return {}

    def observe(self, parts: Parts, probe_gradients: Tree) -> Tree:
        """The next `aux`, given the gradients at the probes; see `observes_each`."""
        del probe_gradients
        return parts.aux

    def restarted(self, aux: Tree) -> Tree:
        """The first `aux` of a run that goes on from another's adapter, given the last of that."""
        return aux

    def stage(self, step: int) -> str:
        """Which kind of step number `step` (from 1) is, by a host clock; each kind is a compiled step of its own."""
        del step
        return ""

    def staged(self, stage: str) -> Method:
        """The method as steps of that kind run it; the arrays are the same."""
        del stage
        return self

    def direction(self, config: OptimizerConfig) -> optax.GradientTransformation | None:
        """An optimizer of the method's own in the place of `config.name`: gradients -> ascent directions, without
        learning rate, clipping and weight decay. Its `update` may take the argument `aux`. None is the config's."""
        del config
        return None

    def denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """Denominators of `terms`, from arrays of the whole global batch alone."""
        del batch
        return {}

    def terms(self, reports: list[Tree], batch: Batch, denominators: dict[str, jax.Array]) -> dict[str, Term]:
        """Loss terms from what the adapters reported, one tree per forward pass of a micro-batch."""
        del reports, batch, denominators
        return {}

    def penalties(self, parts: Parts) -> dict[str, Term]:
        """Loss terms of the parameters alone, added once, after accumulation."""
        del parts
        return {}

    def update_mask(self, params: Tree) -> Tree | None:
        """0/1 arrays that multiply gradients and updates (rows of a stack that stay frozen); None trains everything."""
        del params
        return None

    def notices(self, batch: Batch) -> list[str]:
        """What users should know of a run with batches of these shapes."""
        del batch
        return []

    def maintenance(self) -> Maintenance | None:
        """See `Maintenance`."""
        return None
