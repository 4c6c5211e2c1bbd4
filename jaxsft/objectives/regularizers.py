"""What keeps a model near the one it started from, or makes it less sure of its data, beside any objective.

    NEFTune      x + alpha / sqrt(L D) u, u uniform in [-1, 1]^(L x D)   on the embedded tokens x of an example of
                 length L, in training (Jain et al. 2023, arXiv:2310.05914)
    kl_to_base   lambda mean_t KL(p_0(. | context_t) || p(. | context_t))   over the supervised tokens t, p_0 the
                 model that the run started from; with NEFTune both read the same noise
    l2_to_start  lambda / 2 ||theta - theta_0||^2   (L2-SP: Li et al. 2018, arXiv:1802.01483, equation 3)
    ewc          lambda / 2 sum_i F_i (theta_i - theta_0,i)^2   (Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3),
                 F the diagonal of the Fisher information at theta_0 (`jaxsft.scoring.fisher`)
    l1           lambda ||theta - theta_0||_1 or lambda ||theta||_1   (PAFT: Pentyala et al. 2024, arXiv:2406.17923)

theta are the trained parameters: under LoRA the factors A and B, of which B starts at 0. The first two act through the
data and are terms or inputs of every micro-batch; the others are penalties, added once.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxsft.config import RegularizersConfig
from jaxsft.data.batch import Batch
from jaxsft.objectives.cross_entropy import token_kl
from jaxsft.objectives.examples import spread_over_tokens, sum_by_example
from jaxsft.objectives.objective import Model, ModelOutput, Objective
from jaxsft.objectives.terms import Term, ratio

Tree = Any
NEFTUNE = 0x4EF7  # folded into the step's key, so that no other draw of the step is the same
NEARLY_ZERO = 1e-5  # below it a weight counts as none


@dataclasses.dataclass(frozen=True)
class Regularized:
    """An objective with regularisers; the fields are those of `jaxsft.config.RegularizersConfig`.

    Attributes:
      objective: what it adds to.
      chunk_size: tokens per device whose logits exist at once.
    """

    objective: Objective
    neftune_alpha: float = 0.0
    kl_to_base: float = 0.0
    l2_to_start: float = 0.0
    ewc: float = 0.0
    l1: float = 0.0
    l1_on: str = "change"
    l1_proximal: bool = False
    chunk_size: int = 1024

    @property
    def grouping(self) -> str:
        """The objective's."""
        return self.objective.grouping

    @property
    def needs_reference(self) -> bool:
        """The objective's; what the terms here need is in `parts.start`, or the base under the adapter."""
        return self.objective.needs_reference

    def denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """The objective's, and the number of supervised tokens."""
        own = {"kl_to_base": jnp.sum(_supervised(batch))} if self.kl_to_base else {}
        return self.objective.denominators(batch) | own

    def __call__(
        self, model: Model, batch: Batch, denominators: dict[str, jax.Array]
    ) -> tuple[dict[str, Term], dict[str, jax.Array]]:
        """The objective's terms and `kl_to_base`; the objective's sums, and those of what is reported."""
        model = _Listened(model, self.neftune_alpha)
        terms, sums = self.objective(model, batch, denominators)
        if self.kl_to_base:
            output = model.output(batch)
            divergence = jnp.sum(kl_from_base(model, output, batch, self.chunk_size, **model.noise(batch)))
            terms = terms | {"kl_to_base": Term(self.kl_to_base, divergence, denominators["kl_to_base"])}
            own = {"kl_to_base_sum": divergence, "kl_to_base_tokens": jnp.sum(_supervised(batch))}
            sums = sums | own
        if self.l1:
            weights = self._penalised(jax.lax.stop_gradient(model.parts))
            own = {"l1_norm": l1_norm(weights), "l1_sparsity": sparsity(weights), "micro_batches": jnp.ones(())}
            sums = sums | own
        return terms, sums

    def penalties(self, parts: Any) -> dict[str, Term]:
        """The objective's, and `l2_to_start`, `ewc` and `l1`, those that are asked for."""
        terms, one = {}, jnp.ones(())
        if self.l2_to_start:
            change = difference(parts.params, parts.start)
            terms["l2_to_start"] = Term(self.l2_to_start, squared_norm(change) / 2, one)
        if self.ewc:
            weighted = jax.tree.map(lambda f, d: f * d**2, parts.fisher, difference(parts.params, parts.start))
            terms["ewc"] = Term(self.ewc, _sum(weighted) / 2, one)
        if self.l1 and not self.l1_proximal:
            terms["l1"] = Term(self.l1, l1_norm(self._penalised(parts)), one)
        return self.objective.penalties(parts) | terms

    def project(self, parts: Any, learning_rate: jax.Array) -> Tree:
        """The objective's; with `l1_proximal` then the proximal step of the L1 term."""
        params = self.objective.project(parts, learning_rate)
        if not (self.l1 and self.l1_proximal):
            return params
        origin = parts.start if self.l1_on == "change" else jax.tree.map(jnp.zeros_like, params)
        return soft_threshold(params, origin, learning_rate * self.l1)

    def metrics(self, sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The objective's; `kl_to_base` in nats a token, `l1_norm`, and `l1_sparsity`, the share of weights below 1e-5
        in magnitude."""
        metrics = self.objective.metrics(sums)
        if self.kl_to_base:
            metrics = metrics | {"kl_to_base": ratio(sums["kl_to_base_sum"], sums["kl_to_base_tokens"])}
        if self.l1:
            own = {name: sums[name] / sums["micro_batches"] for name in ("l1_norm", "l1_sparsity")}
            metrics = metrics | own
        return metrics

    def _penalised(self, parts: Any) -> Tree:
        """What L1 is of."""
        return difference(parts.params, parts.start) if self.l1_on == "change" else parts.params


def kept(config: RegularizersConfig, trains_base: bool) -> tuple[bool, bool]:
    """Whether the run has to keep its first parameters, and the Fisher information of them."""
    change = config.l2_to_start or config.ewc or (config.l1 and config.l1_on == "change")
    return bool(change or (config.kl_to_base and trains_base)), bool(config.ewc)


def neftune_noise(key: jax.Array, batch: Batch, embed_dim: int, alpha: float) -> jax.Array:
    """float32 [B, T, D], the noise of a step, 0 in padding.

    L is the length of the example, not of the row that it is packed in. A draw depends on the step's key, the index of
    the example and the place in it, so packing, micro-batches and devices do not change it.
    """
    ids = jnp.asarray(batch.example_ids)
    column = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    first = lambda column, ids: jax.ops.segment_min(column, ids, batch.num_slots + 1)[1:]
    place = column - spread_over_tokens(jax.vmap(first)(column, ids), batch)
    example = spread_over_tokens(jnp.asarray(batch.extras["example_index"]), batch)
    length = spread_over_tokens(sum_by_example(jnp.ones(ids.shape, jnp.float32), batch), batch)

    def draw(example: jax.Array, place: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, example), place)
        return jax.random.uniform(own, (embed_dim,), jnp.float32, -1.0, 1.0)

    size = jnp.where(ids > 0, alpha / jnp.sqrt(jnp.maximum(length, 1) * embed_dim), 0)
    return size[..., None] * jax.vmap(jax.vmap(draw))(example, place)


def kl_from_base(model: Model, output: ModelOutput, batch: Batch, chunk_size: int, **noise: jax.Array) -> jax.Array:
    """KL(base || model) of every supervised token in nats, [B, T], 0 elsewhere; differentiable in the model alone.

    Args:
      model: gives the base.
      output: what the model gave for these rows.
      batch: the rows.
      chunk_size: tokens per device whose logits exist at once.
      **noise: `embed_noise`, if the model had any: both are asked the same.
    """
    base = model(batch, adapter=False, **noise)
    return token_kl(
        base.head,
        base.head_params,
        base.hidden,
        output.head,
        output.head_params,
        output.hidden,
        mask=batch.weights != 0,
        chunk_size=chunk_size,
    )


def difference(params: Tree, start: Tree) -> Tree:
    """params - start; the start has no gradient."""
    return jax.tree.map(lambda p, s: p - jax.lax.stop_gradient(s), params, start)


def squared_norm(tree: Tree) -> jax.Array:
    """The sum of squares."""
    return _sum(jax.tree.map(jnp.square, tree))


def l1_norm(tree: Tree) -> jax.Array:
    """The sum of magnitudes; its gradient is the sign, and 0 at 0."""
    # not jnp.abs, whose gradient at 0 is 1 and would move what has not moved
    return _sum(jax.tree.map(lambda x: x * jax.lax.stop_gradient(jnp.sign(x)), tree))


def sparsity(tree: Tree) -> jax.Array:
    """The share of numbers below 1e-5 in magnitude."""
    small = _sum(jax.tree.map(lambda x: (jnp.abs(x) < NEARLY_ZERO).astype(jnp.float32), tree))
    return small / sum(x.size for x in jax.tree.leaves(tree))


def soft_threshold(params: Tree, origin: Tree, threshold: jax.Array) -> Tree:
    """The proximal step of threshold ||params - origin||_1: w <- sign(w) max(|w| - threshold, 0), w the difference.

    What comes within the threshold is exactly the origin's.
    """

    def shrink(p: jax.Array, o: jax.Array) -> jax.Array:
        change = p - o
        return jnp.where(jnp.abs(change) <= threshold, o, p - jnp.sign(change) * threshold).astype(p.dtype)

    return jax.tree.map(shrink, params, origin)


class _Listened:
    """The model with NEFTune's noise, and a memory of what it answered: a term need not ask again."""

    def __init__(self, model: Model, alpha: float):
        self._model, self._alpha = model, alpha
        self._outputs: list[tuple[Batch, ModelOutput]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, batch: Batch, *, adapter: bool = True, **options: Any) -> ModelOutput:
        if not adapter:
            return self._model(batch, adapter=False, **options)
        noise = self.noise(batch)
        if noise and options.get("embed_noise") is not None:
            noise["embed_noise"] += options["embed_noise"]
        output = self._model(batch, **options | noise)
        if not options:
            self._outputs.append((batch, output))
        return output

    def noise(self, batch: Batch) -> dict[str, jax.Array]:
        """NEFTune's, as an argument of the model; none in evaluation, which has no key."""
        if not self._alpha or self._model.step_key is None:
            return {}
        key = jax.random.fold_in(self._model.step_key, NEFTUNE)
        return {"embed_noise": neftune_noise(key, batch, self._model.embed_dim, self._alpha)}

    def output(self, batch: Batch) -> ModelOutput:
        """What the model answers for these rows: what the objective was given, where it asked just that."""
        known = [output for rows, output in self._outputs if rows is batch]
        return known[0] if known else self(batch)


def _supervised(batch: Batch) -> jax.Array:
    return (jnp.asarray(batch.weights) != 0).astype(jnp.float32)


def _sum(tree: Tree) -> jax.Array:
    return sum((jnp.sum(x) for x in jax.tree.leaves(tree)), start=jnp.zeros(()))
