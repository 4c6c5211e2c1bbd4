"""What an objective is, and what it sees of the model."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax

from jaxsft.data.batch import Batch
from jaxsft.objectives.terms import Term

Head = Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """A forward pass, with the head not yet applied.

    Attributes:
      hidden: [B, T, D] after the final norm, in the compute dtype.
      head: `head(head_params, hidden[..., D]) -> logits [..., V]`; carries tying, soft-cap and the head's adapter.
      head_params: all that `head` reads. Its gradient is computed for those leaves alone that are being differentiated,
        so frozen leaves cost nothing.
      aux: what the adapters reported, stacked by the scan over layers.
      unnormed: [B, T, D] before the final norm.
      norm: the final norm, `norm(unnormed[..., D]) -> hidden[..., D]`.
    """

    hidden: jax.Array
    head: Head
    head_params: Any
    aux: dict[str, Any] = dataclasses.field(default_factory=dict)
    unnormed: jax.Array | None = None
    norm: Callable[[jax.Array], jax.Array] | None = None


class Model(Protocol):
    """The model as an objective sees it, built by the training step around parameters, adapters and keys.

    Attributes:
      key: of this step and micro-batch, for an objective's own randomness; None in evaluation.
      step_key: of this step, the same for all micro-batches: fold in what tells examples apart (`example_index`), and
        the draws do not depend on how the batch was cut.
      parts: the tuning method's arrays (`jaxsft.adapters.method.Parts`).
      embed_dim: the width of the embedding, D.
    """

    key: jax.Array | None
    step_key: jax.Array | None
    parts: Any
    embed_dim: int

    def __call__(self, batch: Batch, *, adapter: bool = True, embed_noise: jax.Array | None = None) -> ModelOutput:
        """One forward pass.

        Args:
          batch: the rows.
          adapter: False is the model that the run started from. Under an adapter that is the base, at no further
            memory; in full fine-tuning it needs the parameters that `parts.start` keeps.
          embed_noise: [B, T, D], added to the embedded tokens.
        """
        ...


class Objective(Protocol):
    """A loss. Static and hashable: a frozen dataclass of plain numbers, closed over by the jitted step.

    Attributes:
      grouping: the `config.data.grouping` that it needs; "" is any.
      needs_reference: whether it compares the model with a reference.
    """

    grouping: str
    needs_reference: bool

    def denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """The denominators of the terms, from arrays of the whole global batch, before it is cut into micro-batches."""
        ...

    def __call__(
        self, model: Model, batch: Batch, denominators: dict[str, jax.Array]
    ) -> tuple[dict[str, Term], dict[str, jax.Array]]:
        """The terms of one micro-batch, and sums for metrics, which add up over micro-batches and batches."""
        ...

    def penalties(self, parts: Any) -> dict[str, Term]:
        """Terms of the parameters alone, added once, after accumulation."""
        ...

    def project(self, parts: Any, learning_rate: jax.Array) -> Any:
        """The trained parameters once the optimizer has moved them: where they may not stay, moved back."""
        ...

    def metrics(self, sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What is reported, from the sums over all micro-batches."""
        ...


class Base:
    """What most objectives answer: any data, no reference, no penalties, no projection."""

    grouping = ""
    needs_reference = False

    def penalties(self, parts: Any) -> dict[str, Term]:
        """None."""
        del parts
        return {}

    def project(self, parts: Any, learning_rate: jax.Array) -> Any:
        """As they are."""
        del learning_rate
        return parts.params
