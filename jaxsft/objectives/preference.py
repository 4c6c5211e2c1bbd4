"""Losses on pairs of answers: the chosen one is to become likelier than the rejected one, against a reference.

With r_w and r_l the log-ratios log p(y | x) - log p_ref(y | x) of the chosen and the rejected answer, sums over their
tokens (with `ratio = "mean"` means), and z = beta (r_w - r_l):

    dpo         -log sigma(z)                                      (Rafailov et al. 2023, arXiv:2305.18290, equation 7)
                with eps of the labels taken to be wrong: -(1 - eps) log sigma(z) - eps log sigma(-z)
    ipo         (r_w - r_l - 1 / (2 beta))^2                       (Azar et al. 2023, arXiv:2310.12036, equation 17)
    minor_dpo   -log sigma(beta (r_w - max(0, r_l)))               (Xie et al. 2024, arXiv:2408.09834)
    hinge       max(0, 1 - z)                                      (Zhao et al. 2023, arXiv:2305.10425; SPIN's variant)

each a mean over the pairs of the global batch. `sft_weight` adds the chosen answers' negative log-likelihood, a mean
over their tokens (the iterative RPO of Pang et al. 2024, arXiv:2404.19733, up to its normalisation). SPIN (Chen et al.
2024, arXiv:2401.01335) is "dpo" on pairs of a human and the reference's own answer.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxsft.data.batch import Batch
from jaxsft.data.preference import CHOSEN, REJECTED
from jaxsft.errors import UserError
from jaxsft.objectives.cross_entropy import cross_entropies
from jaxsft.objectives.examples import spread_over_tokens, sum_by_example, target_counts
from jaxsft.objectives.figures import token_metrics, token_sums
from jaxsft.objectives.objective import Base, Model
from jaxsft.objectives.reference import PREFIX, reference_log_probs
from jaxsft.objectives.terms import Term, ratio

Pair = tuple[jax.Array, jax.Array]  # of the chosen and of the rejected answers, [B, E - 1] each


def preference_loss(
    chosen: jax.Array, rejected: jax.Array, beta: float, kind: str = "dpo", label_smoothing: float = 0.0
) -> jax.Array:
    """The loss of each pair, in the shape of the log-ratios.

    Args:
      chosen: r_w, any shape, in nats.
      rejected: r_l, likewise.
      beta: the inverse temperature, positive.
      kind: "dpo", "ipo", "minor_dpo" or "hinge".
      label_smoothing: eps, for "dpo", in [0, 0.5).
    """
    if kind == "ipo":
        return (chosen - rejected - 1 / (2 * beta)) ** 2
    if kind == "minor_dpo":
        # Where the model is the reference r_l is 0, and the gradient there is that of DPO; `maximum` would halve it.
        rejected = jnp.where(rejected >= 0, rejected, 0)
    elif kind not in ("dpo", "hinge"):
        raise ValueError(f"unknown preference loss {kind!r}")
    z = beta * (chosen - rejected)
    if kind == "hinge":
        return jax.nn.relu(1 - z)
    return (1 - label_smoothing) * jax.nn.softplus(-z) + label_smoothing * jax.nn.softplus(z)


@dataclasses.dataclass(frozen=True)
class Preference(Base):
    """What the losses on pairs share; see `jaxsft.config.ObjectiveConfig` for the fields."""

    kind: ClassVar[str] = "dpo"
    grouping: ClassVar[str] = "preference"
    needs_reference: ClassVar[bool] = True

    beta: float | None = None
    ratio: str = "sum"
    sft_weight: float = 0.0
    chunk_size: int = 1024

    def __post_init__(self):
        """Refuses a missing beta: there is none that is right for every model and data set."""
        if not self.beta:
            raise UserError(
                f"config.objective.beta is {self.beta}; say how strongly the model is held to the reference (0.1 is "
                "usual, smaller lets it move further; see docs/methods/preference.md)."
            )

    def denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """The number of pairs, and of the chosen answers' tokens."""
        return {
            "pairs": jnp.sum(_is_pair(batch)).astype(jnp.float32),
            "chosen_tokens": jnp.sum(_chosen_tokens(batch)),
        }

    def __call__(
        self, model: Model, batch: Batch, denominators: dict[str, jax.Array]
    ) -> tuple[dict[str, Term], dict[str, jax.Array]]:
        """The terms `preference` and, with a weight, `sft`; sums over pairs and over the chosen answers' tokens."""
        output = model(batch)
        head = output.head, output.head_params, output.hidden
        losses, tokens = cross_entropies(*head, batch.targets, batch.weights != 0, chunk_size=self.chunk_size)
        log_probs, references = -sum_by_example(losses, batch), self._references(model, batch)
        counts = target_counts(batch) if self.ratio == "mean" else jnp.ones(log_probs.shape)
        pairs, chosen_tokens = _is_pair(batch), _chosen_tokens(batch)
        chosen, rejected = (
            ratio(log_prob - reference, count)
            for log_prob, reference, count in zip(by_pair(log_probs), self.reference(references), by_pair(counts))
        )
        loss = jnp.sum(jnp.where(pairs, self.loss(chosen, rejected), 0))
        terms = {"preference": Term(1.0, loss, denominators["pairs"])}
        if self.sft_weight:
            terms["sft"] = Term(self.sft_weight, jnp.sum(chosen_tokens * losses), denominators["chosen_tokens"])
        sums = token_sums(
            dataclasses.replace(batch, weights=chosen_tokens),
            tokens.log_prob,
            tokens.hit & (chosen_tokens > 0),
            references[0] if self.needs_reference else None,
        )
        return terms, sums | self._sums(pairs, by_pair(log_probs), (self.beta * chosen, self.beta * rejected))

    def loss(self, chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        """The loss of each pair, from its log-ratios."""
        return preference_loss(chosen, rejected, self.beta, self.kind)

    def reference(self, log_probs: jax.Array) -> Pair:
        """The log-probabilities that both answers are held to, from those of all references, [K, B, E].

        Raises:
          UserError: if there are several references, of which this loss would see one.
        """
        if len(log_probs) > 1:
            raise UserError(
                f"config.reference.models names {len(log_probs)} models, of which the objective {self.kind!r} reads "
                "one; name one, or set config.objective.name to 'mrpo'."
            )
        return by_pair(log_probs[0])

    def metrics(self, sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """`rewards/chosen`, `rewards/rejected` (beta times the log-ratio), `rewards/margins` (their difference) and
        `rewards/accuracies` (the share of pairs in which it is positive); `logps/chosen`, `logps/rejected` (nats an
        answer): means over pairs. And `token_metrics` of the chosen answers.
        """
        means = {name: ratio(sums[name], sums["pairs"]) for name in sums if name.startswith(("rewards/", "logps/"))}
        return token_metrics(sums) | means

    def _references(self, model: Model, batch: Batch) -> jax.Array:
        """[K, B, E], the log-probabilities of all examples under each reference; zeros where none is wanted."""
        if not self.needs_reference:
            return jnp.zeros((1, *batch.extras["example_index"].shape))
        count = max(1, sum(name.removeprefix(PREFIX).isdigit() for name in batch.extras))
        return jnp.stack([reference_log_probs(model, batch, k, self.chunk_size) for k in range(count)])

    def _sums(self, pairs: jax.Array, log_probs: Pair, rewards: Pair) -> dict[str, jax.Array]:
        values = {
            "rewards/chosen": rewards[CHOSEN],
            "rewards/rejected": rewards[REJECTED],
            "rewards/margins": rewards[CHOSEN] - rewards[REJECTED],
            "rewards/accuracies": rewards[CHOSEN] > rewards[REJECTED],
            "logps/chosen": log_probs[CHOSEN],
            "logps/rejected": log_probs[REJECTED],
        }
        sums = {name: jax.lax.stop_gradient(jnp.sum(jnp.where(pairs, x, 0.0))) for name, x in values.items()}
        return sums | {"pairs": jnp.sum(pairs).astype(jnp.float32)}


@dataclasses.dataclass(frozen=True)
class DPO(Preference):
    """Direct preference optimisation, with label smoothing (cDPO) and without a reference on request."""

    label_smoothing: float = 0.0
    reference_free: bool = False

    def __post_init__(self):
        """Refuses a label smoothing that would prefer the rejected answer."""
        super().__post_init__()
        check_label_smoothing(self.label_smoothing)

    @property
    def needs_reference(self) -> bool:
        """Unless the reference is uniform."""
        return not self.reference_free

    def loss(self, chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        """See `preference_loss`."""
        return preference_loss(chosen, rejected, self.beta, self.kind, self.label_smoothing)


@dataclasses.dataclass(frozen=True)
class IPO(Preference):
    """Identity preference optimisation: the margin of log-ratios is drawn to 1 / (2 beta)."""

    kind: ClassVar[str] = "ipo"

    reference_free: bool = False

    @property
    def needs_reference(self) -> bool:
        """Unless the reference is uniform."""
        return not self.reference_free


@dataclasses.dataclass(frozen=True)
class MinorDPO(Preference):
    """DPO that stops pushing an answer down once it is less likely than under the reference."""

    kind: ClassVar[str] = "minor_dpo"


@dataclasses.dataclass(frozen=True)
class Hinge(Preference):
    """The margin of log-ratios is pushed until it is 1 / beta, and no further."""

    kind: ClassVar[str] = "hinge"


def check_label_smoothing(value: float) -> None:
    """Refuses a label smoothing of half or more.

    Raises:
      UserError: saying so.
    """
    if value >= 0.5:
        raise UserError(
            f"config.objective.label_smoothing is {value:g}; of preference pairs less than half can be mislabelled, so "
            "it must be below 0.5."
        )


def by_pair(values: jax.Array) -> Pair:
    """Numbers of examples [..., E] as those of the chosen and of the rejected sides [..., E - 1].

    Position e holds the pair whose chosen side is in slot e, where there is one.
    """
    return values[..., :-1], values[..., 1:]


def _is_pair(batch: Batch) -> jax.Array:
    """bool [B, E - 1]: a chosen example is in slot e, and its rejected one in the next."""
    return jnp.asarray(batch.extras["member"])[:, 1:] == REJECTED


def _chosen_tokens(batch: Batch) -> jax.Array:
    """float32 [B, T], 1 for the supervised tokens of chosen answers."""
    chosen = spread_over_tokens((jnp.asarray(batch.extras["member"]) == CHOSEN).astype(jnp.float32), batch)
    return chosen * (jnp.asarray(batch.weights) != 0)
