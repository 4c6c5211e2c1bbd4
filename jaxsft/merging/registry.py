"""The methods by name: what each needs, which settings it reads, and its call for one tensor."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxsft.config import MergeConfig
from jaxsft.merging import sphere
from jaxsft.merging.breadcrumbs import breadcrumbs
from jaxsft.merging.dare import dare, model_key
from jaxsft.merging.fisher import fisher
from jaxsft.merging.linear import linear, task_arithmetic
from jaxsft.merging.regmean import regmean
from jaxsft.merging.sce import sce
from jaxsft.merging.ties import ties


class Leaf(NamedTuple):
    """One tensor of every model, of one layer; kernels as files hold them, [out, in].

    Attributes:
      name: its logical path.
      models: the models' arrays, of any float dtypes.
      base: the base's, or None.
      weights: one for each model.
      density: one for each model.
      statistics: of each model, what the method's `statistics` names; () where this tensor has none.
      norms: of each model's statistics.
    """

    name: str
    models: tuple[jax.Array, ...]
    base: jax.Array | None
    weights: tuple[float, ...]
    density: tuple[float, ...]
    statistics: tuple[jax.Array, ...] = ()
    norms: tuple[float, ...] = ()


class Method(NamedTuple):
    """A method.

    Attributes:
      run: of one tensor, to its merged values in at least float32.
      reads: the fields of `MergeConfig` that it reads, besides those that all do; "base" where it can have one.
      needs_base: whether it must have one.
      models: the least and the largest number of models.
      normalizes: whether it divides by the sum of weights where the config does not say.
      votes: whether it divides by the weights of those that agree, if it divides.
      positive: whether weights must be positive.
      statistics: what it must know of the models: "fisher", "gram", or "".
      arrays: with K models, (K, this) arrays of the tensor's size exist at once at most, in float32.
    """

    run: Callable[[Leaf, MergeConfig], jax.Array]
    reads: frozenset[str]
    needs_base: bool = False
    models: tuple[int, float] = (1, float("inf"))
    normalizes: bool = False
    votes: bool = False
    positive: bool = False
    statistics: str = ""
    arrays: Callable[[int], int] = lambda count: count + 2


WEIGHTED = frozenset({"weights", "gradient"})
TASK = WEIGHTED | {"base", "scale", "normalize"}
SPARSE = TASK | {"density", "rescale"}


def normalizes(config: MergeConfig) -> bool:
    """Whether the merge divides by sums of weights."""
    return METHODS[config.method].normalizes if config.normalize is None else config.normalize


def _linear(leaf: Leaf, config: MergeConfig) -> jax.Array:
    return linear(leaf.models, leaf.weights, normalizes(config))


def _task_arithmetic(leaf: Leaf, config: MergeConfig) -> jax.Array:
    return task_arithmetic(leaf.models, leaf.base, leaf.weights, config.scale, normalizes(config))


def _ties(leaf: Leaf, config: MergeConfig) -> jax.Array:
    settings = (config.scale, normalizes(config), config.trim, _rescale(config, "none"))
    return ties(leaf.models, leaf.base, leaf.weights, leaf.density, *settings)


def _breadcrumbs(vote: bool) -> Callable[[Leaf, MergeConfig], jax.Array]:
    def run(leaf: Leaf, config: MergeConfig) -> jax.Array:
        settings = (config.gamma, config.scale, normalizes(config), vote, _rescale(config, "none"))
        return breadcrumbs(leaf.models, leaf.base, leaf.weights, leaf.density, *settings)

    return run


def _dare(vote: bool, ranked: bool) -> Callable[[Leaf, MergeConfig], jax.Array]:
    def run(leaf: Leaf, config: MergeConfig) -> jax.Array:
        keys = [model_key(config.seed, leaf.name, k) for k in range(len(leaf.models))]
        settings = (config.scale, normalizes(config), vote, _rescale(config, "density"))
        epsilon = config.epsilon if ranked else 0.0
        return dare(leaf.models, leaf.base, leaf.weights, leaf.density, keys, *settings, epsilon)

    return run


def _slerp(leaf: Leaf, config: MergeConfig) -> jax.Array:
    return sphere.slerp(leaf.models, leaf.weights)


def _nuslerp(leaf: Leaf, config: MergeConfig) -> jax.Array:
    return sphere.nuslerp(leaf.models, leaf.weights, leaf.base, config.per_row)


def _karcher(leaf: Leaf, config: MergeConfig) -> jax.Array:
    return sphere.karcher(leaf.models, leaf.weights, leaf.base)


def _model_stock(leaf: Leaf, config: MergeConfig) -> jax.Array:
    return sphere.model_stock(leaf.models, leaf.base, config.per_row)


def _sce(leaf: Leaf, config: MergeConfig) -> jax.Array:
    return sce(leaf.models, leaf.base, leaf.density[0])


def _fisher(leaf: Leaf, config: MergeConfig) -> jax.Array:
    return fisher(leaf.models, leaf.statistics, leaf.weights, leaf.norms if config.fisher_norm else None)


def _regmean(leaf: Leaf, config: MergeConfig) -> jax.Array:
    if not leaf.statistics:
        return linear(leaf.models, leaf.weights)
    return regmean(leaf.models, leaf.statistics, leaf.weights, config.shrink)


def _sparse(run: Callable[[Leaf, MergeConfig], jax.Array], *fields: str, **traits: bool) -> Method:
    return Method(run, SPARSE | set(fields), needs_base=True, arrays=_twice, **traits)


def _twice(count: int) -> int:
    return 2 * count + 4


MEASURED = WEIGHTED | {"data", "examples", "seed"}
BY_DATA = {"normalizes": True, "positive": True, "arrays": _twice}


ON_SPHERE = {"normalizes": True}
METHODS: dict[str, Method] = {
    "linear": Method(_linear, WEIGHTED | {"normalize"}, normalizes=True),
    "task_arithmetic": Method(_task_arithmetic, TASK, needs_base=True),
    "slerp": Method(_slerp, WEIGHTED, models=(2, 2), **ON_SPHERE),
    "nuslerp": Method(_nuslerp, WEIGHTED | {"base", "per_row"}, models=(2, 2), **ON_SPHERE),
    "karcher": Method(_karcher, WEIGHTED | {"base"}, positive=True, **ON_SPHERE),
    "model_stock": Method(_model_stock, frozenset({"base", "per_row"}), needs_base=True, models=(2, float("inf"))),
    "ties": _sparse(_ties, "trim", normalizes=True, votes=True),
    "breadcrumbs": _sparse(_breadcrumbs(vote=False), "gamma"),
    "breadcrumbs_ties": _sparse(_breadcrumbs(vote=True), "gamma", votes=True),
    "dare_linear": _sparse(_dare(vote=False, ranked=False), "seed"),
    "dare_ties": _sparse(_dare(vote=True, ranked=False), "seed", votes=True),
    "della": _sparse(_dare(vote=True, ranked=True), "seed", "epsilon", normalizes=True, votes=True),
    "della_linear": _sparse(_dare(vote=False, ranked=True), "seed", "epsilon"),
    "fisher": Method(_fisher, MEASURED | {"fisher_norm"}, statistics="fisher", **BY_DATA),
    "regmean": Method(_regmean, MEASURED | {"shrink"}, statistics="gram", **BY_DATA),
    "sce": Method(_sce, frozenset({"base", "density"}), needs_base=True, arrays=_twice),
}


def _rescale(config: MergeConfig, default: str) -> str:
    return default if config.rescale == "auto" else config.rescale
