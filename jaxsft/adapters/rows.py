"""Rows of new tokens, trained over a frozen base: E[i] = r_i for the ids i that are named, E[j] = W[j] for all others.

What is trained is a small array r [n, D] at the embedding, and one at a head of its own if it is targeted; so all other
rows stay as they are to the bit, whatever optimizer, momentum and weight decay do. Where the embedding is tied, the
head computes with the same r.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.adapters.adapter import Adapter
from jaxsft.adapters.method import Parts, Tree
from jaxsft.config import RowsConfig
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.projection import Aux, Context, dense, project

EMBED, HEAD = ("embed",), ("head",)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowsNode:
    """The embedding or the head with other rows: rows [n, D] of the tokens with these ids."""

    rows: jax.Array
    ids: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def project(self, x: jax.Array, kernel: Any, ctx: Context) -> tuple[jax.Array, Aux]:
        """The base's product, with these rows in the place of its own."""
        y, _ = project(x, kernel, None, ctx)
        rows, ids = self.rows.astype(y.dtype), np.array(self.ids)
        if jnp.issubdtype(x.dtype, jnp.integer):
            own = x[..., None] == ids
            return jnp.where(own.any(-1, keepdims=True), jnp.take(rows, jnp.argmax(own, -1), axis=0), y), {}
        return y.at[..., ids].set(x.astype(y.dtype) @ rows.T), {}


@dataclasses.dataclass(frozen=True)
class Rows(Adapter):
    """The method: trained are `rows` of the embedding, and of the head if it is targeted; frozen is the base.

    Attributes:
      config: the settings.
      arch: the model.
      ids: whose rows they are, in rising order.
    """

    config: RowsConfig
    arch: Architecture
    ids: tuple[int, ...]
    name = "rows"
    ties = True

    def split(self, base: Tree, key: jax.Array) -> Parts:
        """The rows as the base has them."""
        del key

        def rows(path: layout.Path, kernel: Any) -> dict[str, jax.Array]:
            table = kernel if path == EMBED else kernel.T
            return {"rows": jnp.take(table, np.array(self.ids), axis=0).astype(jnp.float32)}

        return Parts(self.at_targets(rows, base), {"base": base}, {})

    def axes(self, base_axes: Tree) -> Parts:
        """Each row is split over its width."""
        return Parts(self.at_targets(lambda *_: {"rows": (None, "embed")}, base_axes), {"base": base_axes}, {})

    def node(self, arrays: dict[str, Any]) -> RowsNode:
        """With the ids."""
        return RowsNode(arrays["rows"], self.ids)

    def transposed(self, arrays: dict[str, Any]) -> RowsNode:
        """Of a tied head: the same rows."""
        return self.node(arrays)

    def merge(self, parts: Parts) -> Tree:
        """The base with these rows in their places, rounded once to its dtype."""

        def replace(path: layout.Path, kernel: Any) -> Any:
            arrays = layout.get(parts.params, path[:-1])
            if arrays is None or path[:-1] not in (EMBED, HEAD):
                return dense(kernel, kernel.dtype) if hasattr(kernel, "dequantize") else kernel
            rows, ids = arrays["rows"].astype(kernel.dtype), np.array(self.ids)
            return kernel.at[ids].set(rows) if path[:-1] == EMBED else kernel.at[:, ids].set(rows.T)

        return layout.map_leaves(replace, parts.frozen["base"])


def make(config: RowsConfig, arch: Architecture) -> Rows:
    """The method of a config on a model.

    Raises:
      UserError: for targets that are no matrix of tokens, and for ids that are missing, twice or beyond the model.
    """
    where, ids = "config.adapter.rows", config.ids or arch.new_ids
    own = ("embed",) if arch.tied else ("embed", "head")
    if not config.targets or set(config.targets) - set(own):
        tied = "; the head is the embedding here" if arch.tied else ""
        raise UserError(f"{where}.targets is {config.targets!r}; name any of {', '.join(own)}{tied}.")
    if not ids:
        raise UserError(
            f"{where}.ids is empty, and the model's config.json names no new tokens; add some (scripts/add_tokens.py), "
            "or give the ids of the rows that are to be trained."
        )
    if len(set(ids)) < len(ids) or not all(0 <= i < arch.vocab_size for i in ids):
        raise UserError(f"{where}.ids is {ids!r}; name each id once, from 0 to {arch.vocab_size - 1}.")
    return Rows(config, arch, tuple(sorted(ids)))
