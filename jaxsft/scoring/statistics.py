"""Statistics of what goes into each linear map of a model on given data: mean, variance, L2 norm, and the Gram matrix.

An adapter node observes: it lets the map compute what it would, adapted or not, and reports sums over the real tokens
of a batch, which come up through the scan over layers. Sums of batches are joined on the devices by the rule of Chan et
al. 1979, which loses nothing where a mean is large; so the figures depend neither on the batch size nor on packing.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxsft.data.batch import Batch
from jaxsft.evaluation.scoring import replicate, to_devices
from jaxsft.models import layout
from jaxsft.models.decoder import Decoder
from jaxsft.models.projection import AdapterNode, Aux, Context, project

Tree = Any


class Moments(NamedTuple):
    """Of the inputs x [tokens, in] of a linear map, float32 or wider; stacked maps have a leading layer axis.

    Attributes:
      count: [], tokens.
      mean: [in].
      squares: [in], sums of (x - mean)^2.
      gram: [in, in], the sum of x x^T, or None.
    """

    count: jax.Array
    mean: jax.Array
    squares: jax.Array
    gram: jax.Array | None = None

    @property
    def variance(self) -> jax.Array:
        """[in], over tokens."""
        return self.squares / self._counts

    @property
    def sum(self) -> jax.Array:
        """[in], of x over all tokens."""
        return self.mean * self._counts

    @property
    def energy(self) -> jax.Array:
        """[in], of x^2 over all tokens: the squared L2 norm of each column of x."""
        return self.squares + jnp.square(self.mean) * self._counts

    @property
    def _counts(self) -> jax.Array:
        return self.count[..., None]

    def row(self, index: int | None) -> "Moments":
        """Those of one layer of a stacked map; None: the map is not stacked."""
        return self if index is None else jax.tree.map(lambda x: x[index], self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observer:
    """A node that reports the moments of its map's inputs; `inner` is the map's own adapter, or None."""

    inner: AdapterNode | None
    gram: bool = dataclasses.field(default=False, metadata={"static": True})

    def project(self, x: jax.Array, kernel: Any, ctx: Context) -> tuple[jax.Array, Aux]:
        """What the map computes without being observed, and {"inputs": Moments}."""
        y, _ = project(x, kernel, self.inner, ctx)
        return y, {"inputs": moments(x, ctx.valid, self.gram)}


def moments(x: jax.Array, valid: jax.Array | None, gram: bool = False) -> Moments:
    """Of [..., in] over the places where `valid` [...] is True (None: over all)."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x = x.astype(wide).reshape(-1, x.shape[-1])
    weight = jnp.ones(len(x), wide) if valid is None else valid.reshape(-1).astype(wide)
    count = jnp.sum(weight)
    summed = functools.partial(jnp.matmul, weight, precision="highest")
    mean = summed(x) / jnp.maximum(count, 1)
    squares = summed(jnp.square(x - mean))
    products = None
    if gram:
        products = jnp.matmul((x * weight[:, None]).T, x, precision="highest")
    return Moments(count, mean, squares, products)


def join(one: Moments, other: Moments) -> Moments:
    """Of both sets of tokens together."""
    count = one.count + other.count
    share = (other.count / jnp.maximum(count, 1))[..., None]
    change = other.mean - one.mean
    squares = one.squares + other.squares + jnp.square(change) * one.count[..., None] * share
    gram = None if one.gram is None else one.gram + other.gram
    return Moments(count, one.mean + change * share, squares, gram)


def input_statistics(
    decoder: Decoder,
    params: Tree,
    adapters: Tree | None,
    batches: Iterable[Batch],
    mesh: Mesh,
    targets: Sequence[str],
    gram: bool = False,
) -> tuple[Tree, int]:
    """The moments of the inputs of linear maps on all batches.

    Args:
      decoder: the model's forward pass.
      params: its parameters.
      adapters: as for `Decoder.forward`, or None.
      batches: NumPy batches, each process's own rows; padding is left out.
      mesh: the one that the parameters live on.
      targets: logical-path patterns of linear maps; stacked ones are observed in all layers of their stack. The head's
        inputs are the final hidden states; the embedding has none.
      gram: whether to sum the Gram matrices, [in, in] for each map.

    Returns:
      A tree with `Moments` at the paths of the targeted maps, and the number of examples.

    Raises:
      ValueError: without batches.
    """
    total, examples = None, 0
    with jax.set_mesh(mesh):
        for batch in batches:
            examples += int(jax.device_get(_examples(placed := to_devices(batch, mesh))))
            new = _observe(decoder, tuple(targets), gram, params, adapters, placed)
            total = new if total is None else _join(total, new)
    if total is None:
        raise ValueError("there are no batches")
    return total, examples


def observers(decoder: Decoder, adapters: Tree | None, targets: Sequence[str], gram: bool = False) -> Tree:
    """An adapter tree that observes the targeted maps and leaves every map's own adapter at work."""
    tree: dict = {}
    for path, _ in layout.leaves(decoder.abstract_params()):
        if path[-1] != "kernel" or path[0] == "head":
            continue
        inner = layout.get(adapters, path[:-1])
        if layout.rows(decoder.arch, path[:-1], targets).any():
            layout.put(tree, path[:-1], Observer(inner, gram))
        elif inner is not None:
            layout.put(tree, path[:-1], inner)
    for name in ("embed", "head"):
        if adapters and name in adapters:
            tree[name] = adapters[name]
    return tree


@functools.partial(jax.jit, static_argnames=("decoder", "targets", "gram"))
def _observe(
    decoder: Decoder, targets: tuple[str, ...], gram: bool, params: Tree, adapters: Tree | None, batch: Batch
) -> Tree:
    valid = batch.segment_ids > 0
    ctx = Context(example_ids=batch.example_ids, valid=valid, extras=batch.extras)
    nodes = observers(decoder, adapters, targets, gram)
    output = decoder.forward(params, batch.tokens, batch.positions, batch.segment_ids, adapters=nodes, ctx=ctx)
    tree: dict = {}
    for path, node in _reports(output.aux):
        layout.put(tree, path, node)
    if layout.matches(targets, "head"):
        tree["head"] = moments(output.hidden, valid, gram)
    return tree


def _reports(aux: Tree, path: layout.Path = ()) -> Iterable[tuple[layout.Path, Moments]]:
    """(module path, moments) of what observers said."""
    for name, node in aux.items():
        if name == "inputs":
            yield path, node
        elif isinstance(node, dict):
            yield from _reports(node, (*path, name))


@functools.partial(jax.jit, donate_argnums=0)
def _join(total: Tree, new: Tree) -> Tree:
    return jax.tree.map(join, total, new, is_leaf=lambda node: isinstance(node, Moments))


@jax.jit
def _examples(batch: Batch) -> jax.Array:
    return replicate(jnp.sum(batch.extras["example_index"] >= 0))
