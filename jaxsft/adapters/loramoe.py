"""LoRAMoE: y = x W + s sum_n p_n (x A_n) B_n, with p = softmax(x G) over N low-rank experts of every targeted map.

Dou et al. 2023 (arXiv:2312.09979). W [in, out] is frozen; A_n [in, r], B_n [r, out] and the router G [in, N] are
trained; s = alpha / r. All experts act on all tokens, and the router does not weigh W. A_n and G are uniform in
+-1/sqrt(in) and B_n zero, so a fresh adapter is the base bit for bit. What keeps one expert from doing all the work is
the constraint of `jaxsft.adapters.balance`, a term of the loss.

The N experts are one low-rank product: A = [A_1 .. A_N] is [in, N r], B [N r, out], and between them each block of r
columns is multiplied by its expert's weight. The router's logits come from the product with A, as N more columns.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxsft.adapters import balance
from jaxsft.adapters.adapter import Adapter, Arrays
from jaxsft.adapters.lora import dropout
from jaxsft.adapters.method import Tree
from jaxsft.config import LoRAMoEConfig, TrainConfig
from jaxsft.data.batch import TYPE, Batch
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.projection import Aux, Context, project
from jaxsft.objectives.terms import Term

WHERE = "config.adapter.loramoe"
IMPORTANCE = "importance"  # what a linear map reports: [B, E, N], see `balance.importance`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoRAMoENode:
    """One linear map's experts: lora_a [in, N r], router [in, N], lora_b [N r, out] (stacked: a leading layer axis).

    Attributes:
      expert_types: static; the type of each of the N experts.
      scale: static; s of the equation.
      dropout, per_expert, top_k, padding: static; see `LoRAMoEConfig`, the last being `tokens` "all".
    """

    lora_a: jax.Array
    router: jax.Array
    lora_b: jax.Array
    expert_types: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    scale: float = dataclasses.field(metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    per_expert: bool = dataclasses.field(default=False, metadata={"static": True})
    top_k: int = dataclasses.field(default=0, metadata={"static": True})
    padding: bool = dataclasses.field(default=False, metadata={"static": True})

    def project(self, x: jax.Array, kernel: Any, ctx: Context) -> tuple[jax.Array, Aux]:
        """The base's product plus the routed update, in the dtype of the base's product; reports the importances."""
        y, _ = project(x, kernel, None, ctx)
        inner, logits = self._first(x, y.dtype, ctx)
        weights = routing(logits, self.top_k)
        blocks = inner.reshape(*inner.shape[:-1], len(self.expert_types), -1)
        gate = (self.scale * weights).astype(y.dtype)
        gated = (blocks * gate[..., None]).reshape(inner.shape)
        return y + gated @ self.lora_b.astype(y.dtype), self._report(weights, ctx)

    def _first(self, x: jax.Array, dtype: Any, ctx: Context) -> tuple[jax.Array, jax.Array]:
        """x A [..., N r] and x G [..., N]."""
        a, router = self.lora_a.astype(dtype), self.router.astype(dtype)
        columns = a.shape[-1]
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jnp.take(a, x, axis=0), jnp.take(router, x, axis=0)
        if not ctx.train or self.dropout == 0.0:
            both = x @ jnp.concatenate([a, router], axis=-1)
            return both[..., :columns], both[..., columns:]
        if not self.per_expert:
            return dropout(x, self.dropout, ctx) @ a, x @ router
        experts = len(self.expert_types)

        @jax.checkpoint  # the masks are drawn again rather than kept
        def one(arguments: tuple[jax.Array, jax.Array]) -> jax.Array:
            n, a_n = arguments
            own = dataclasses.replace(ctx, key=jax.random.fold_in(ctx.key, n))
            return dropout(x, self.dropout, own) @ a_n

        a = jnp.moveaxis(a.reshape(a.shape[0], experts, -1), 1, 0)
        inner = jax.lax.map(one, (jnp.arange(experts), a))
        return jnp.moveaxis(inner, 0, -2).reshape(*x.shape[:-1], columns), x @ router

    def _report(self, weights: jax.Array, ctx: Context) -> Aux:
        """Nothing where tokens belong to no examples: in decoding."""
        if ctx.example_ids is None or "example_index" not in ctx.extras:
            return {}
        ids = balance.with_padding(ctx.example_ids) if self.padding else ctx.example_ids
        return {IMPORTANCE: balance.importance(weights, ids, ctx.extras["example_index"].shape[-1])}


def routing(logits: jax.Array, top_k: int = 0) -> jax.Array:
    """The experts' weights [..., N] in at least float32, which sum to 1: the softmax, of the `top_k` largest alone."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if top_k:
        _, chosen = jax.lax.top_k(logits, top_k)
        kept = jnp.any(chosen[..., None] == jnp.arange(logits.shape[-1]), axis=-2)
        logits = jnp.where(kept, logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


@dataclasses.dataclass(frozen=True)
class LoRAMoE(Adapter):
    """The method: trained are `lora_a`, `router` and `lora_b` of every targeted linear map, frozen is the base.

    The constraint is taken of the forward passes with the adapter on, those of a reference being the base; where an
    objective makes several, it is their mean, so that it counts once.
    """

    config: LoRAMoEConfig
    arch: Architecture
    name = "loramoe"

    @property
    def expert_types(self) -> tuple[int, ...]:
        """The type of each expert."""
        half = self.config.experts // 2
        return self.config.expert_types or (1,) * half + (0,) * half

    def fresh(self, kernel: Any, key: jax.Array) -> Arrays:
        """A and G random, B zero."""
        *lead, fan_in, fan_out = kernel.shape
        config, bound = self.config, fan_in**-0.5
        columns = config.experts * config.rank
        first = jax.random.uniform(key, (*lead, fan_in, columns + config.experts), jnp.float32, -bound, bound)
        zeros = jnp.zeros((*lead, columns, fan_out), jnp.float32)
        return {"lora_a": first[..., :columns], "router": first[..., columns:], "lora_b": zeros}

    def fresh_axes(self, axes: tuple[str, ...]) -> Arrays:
        """A and G are split like W's input side, B like its output side."""
        first = (*axes[:-1], "rank")
        return {"lora_a": first, "router": first, "lora_b": (*axes[:-2], "rank", axes[-1])}

    def node(self, arrays: Arrays) -> LoRAMoENode:
        """With what is static of the config."""
        config = self.config
        return LoRAMoENode(
            **arrays,
            expert_types=self.expert_types,
            scale=config.alpha / config.rank,
            dropout=config.dropout,
            per_expert=config.dropout_mode == "per_expert",
            top_k=config.top_k,
            padding=config.tokens == "all",
        )

    def merged(self, kernel: Any, arrays: Arrays) -> jax.Array:
        """Refused: the experts' weights depend on the input."""
        raise UserError(
            "a model with LoRAMoE's experts has no merged form: their weights depend on every token, so no single "
            "matrix does the same. Evaluate and generate from the run's workdir, which keeps the experts beside the "
            "base."
        )

    def denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """Over how many scopes the constraint is a mean."""
        return {"balance": balance.scopes(batch, self.config)} if self.config.beta else {}

    def terms(self, reports: list[Tree], batch: Batch, denominators: dict[str, jax.Array]) -> dict[str, Term]:
        """`balance`: the mean over scopes of the sum over all targeted linear maps of all layers."""
        if not self.config.beta:
            return {}
        found = [q for report in reports for q in self.importances(report)]
        unbalanced = sum(balance.imbalance(q, batch, self.config, self.expert_types) for q in found)
        return {"balance": Term(self.config.beta, unbalanced / len(reports), denominators["balance"])}

    def importances(self, report: Tree) -> list[jax.Array]:
        """Of one forward pass, [..., B, E, N] of each module; of a stack only the layers that have experts."""
        return [q[self.rows(path[:-1])] if path[0] == "stacks" else q for path, q in layout.leaves(report)]

    def notices(self, batch: Batch) -> list[str]:
        """That examples have no types, where the constraint asks for them."""
        if not self.config.beta or not self.config.delta or TYPE in batch.extras:
            return []
        return ["no example has a type (config.data.types), so the balancing constraint treats all experts alike"]


def make(config: TrainConfig, arch: Architecture) -> LoRAMoE:
    """The method that a run's config describes.

    Raises:
      UserError: for experts and types that do not fit each other, and for experts on the head.
    """
    own, method = config.adapter.loramoe, LoRAMoE(config.adapter.loramoe, arch)
    if own.expert_types and len(own.expert_types) != own.experts:
        raise UserError(
            f"{WHERE}.expert_types is {own.expert_types!r} for {own.experts} experts; give each expert a type."
        )
    if own.experts % 2 and not own.expert_types:
        raise UserError(
            f"{WHERE}.experts is {own.experts}, which has no halves; choose an even number, or set expert_types."
        )
    for tag, kind in {**config.data.types.of, "others": config.data.types.other}.items():
        if kind >= 0 and kind not in method.expert_types:
            raise UserError(
                f"config.data.types gives {tag!r} the type {kind}, which no expert has ({WHERE}.expert_types: "
                f"{method.expert_types}); change either."
            )
    if own.top_k > own.experts:
        raise UserError(f"{WHERE}.top_k is {own.top_k}, but there are {own.experts} experts; 0 is all.")
    if layout.matches(own.targets, "head"):
        raise UserError(
            f"{WHERE}.targets names the head, which is applied to chunks of tokens that do not report their routing; "
            "choose patterns that leave it out."
        )
    return method
