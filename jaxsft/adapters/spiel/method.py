"""SpIEL as a tuning method: trained are the deltas, kept beside them are their positions; the base is frozen.

Candidates are the largest entries of the gradient of a whole step. Where a step is one micro-batch, the backward pass
of each layer finds them in its own dense gradient. Where it is several, the dense gradient has to be summed over them,
so that the first step of each phase holds one of all targeted maps, split over devices like the weights. The authors
take the largest of the first micro-batch; `parity` does.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsft.adapters.adapter import Adapter
from jaxsft.adapters.method import Maintenance, Parts, Tree
from jaxsft.adapters.spiel import budget
from jaxsft.adapters.spiel.kernel import SpIELNode, Static, Watch, gather, largest, padded, positions_of, tuned
from jaxsft.adapters.spiel.optimizer import aged_adam, sparse_sm3
from jaxsft.adapters.spiel.reselection import reselect
from jaxsft.adapters.spiel.schedule import Clock
from jaxsft.config import OptimizerConfig, SpIELConfig, TrainConfig
from jaxsft.data.batch import Batch
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.layout import Path
from jaxsft.models.projection import dense
from jaxsft.models.quantized import dequantize_params as plain
from jaxsft.objectives.terms import Term

PLAIN, GATHER, SEARCH = "", "gather", "search"  # kinds of steps; the last needs the dense gradient


@dataclasses.dataclass(frozen=True)
class SpIEL(Adapter):
    """The method.

    `params` hold {"delta": [layers, k]} at the path of every targeted map, `aux["maps"]` {"idx": int32 [layers, k]} and
    for `ag` "candidates" int32, "sum" and "square" float32 of the same shape; `aux["samples"]` counts what the sums are
    of.

    Attributes:
      config: the settings.
      arch: the model.
      clock: when what is due.
      betas: b1 and b2 of the optimizer, which newcomers' moments are made with.
      accumulate: micro-batches of a step.
      current: the kind of step that runs.
    """

    config: SpIELConfig
    arch: Architecture
    clock: Clock
    betas: tuple[float, float]
    accumulate: int = 1
    current: str = PLAIN
    name = "spiel"
    decays_after = True

    @property
    def gathers(self) -> bool:
        """Whether the variant has candidates at all."""
        return self.config.variant == "ag"

    @property
    def observes_each(self) -> bool:
        """The authors sum over micro-batches; by default it is over steps."""
        return self.config.parity

    def fresh(self, kernel: Any, key: jax.Array) -> dict[str, Any]:
        """Deltas of zero at random places, all equally likely."""
        *lead, fan_in, fan_out = kernel.shape
        size = fan_in * fan_out
        count, capacity = self.counts(kernel.shape)

        def draw(key: jax.Array) -> jax.Array:
            chosen = jax.random.permutation(key, size)[:count]
            return padded(jnp.sort(chosen.astype(jnp.int32)), size, capacity)

        idx = jax.vmap(draw)(jax.random.split(key, lead[0]))
        arrays = {"delta": jnp.zeros(idx.shape, self.config.dtype), "idx": idx}
        if not self.gathers:
            return arrays
        nobody = jnp.broadcast_to(padded(jnp.zeros(0, jnp.int32), size, capacity), idx.shape)
        zeros = jnp.zeros(idx.shape, jnp.float32)
        return arrays | {"candidates": nobody, "sum": zeros, "square": jnp.copy(zeros)}

    def counts(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many weights of a map with this kernel are tuned, and the length of the lists that hold them."""
        return budget.counts(self.arch, self.config, shape)

    def shape(self, path: Path) -> tuple[int, int]:
        """(in, out) of a targeted map."""
        return layout.get(budget.abstract_base(self.arch), path)["kernel"].shape[1:]

    def split(self, base: Tree, key: jax.Array) -> Parts:
        """A fresh support over `base`."""
        parts = super().split(base, key)
        maps = self._each(lambda arrays: {n: a for n, a in arrays.items() if n != "delta"}, parts.params)
        aux = {"maps": maps} | ({"samples": jnp.zeros((), jnp.int32)} if self.gathers else {})
        return Parts(self._each(lambda arrays: {"delta": arrays["delta"]}, parts.params), parts.frozen, aux)

    def axes(self, base_axes: Tree) -> Parts:
        """All lists are split over devices, and put together where their layer needs them."""
        names = ("idx", "candidates", "sum", "square") if self.gathers else ("idx",)
        at = lambda names: self.at_targets(lambda path, axes: {n: ("layers", "tuned") for n in names}, base_axes)
        return Parts(
            at(("delta",)), {"base": base_axes}, {"maps": at(names)} | ({"samples": ()} if self.gathers else {})
        )

    def compose(self, parts: Parts, probes: Tree) -> tuple[Tree, Tree]:
        """The base, and a node for every targeted map, which is watched where it has a probe."""
        base, axes = parts.frozen["base"], budget.logical_axes(self.arch)

        def node(path: Path, kernel: Any) -> SpIELNode:
            delta, maps = layout.get(parts.params, path)["delta"], layout.get(parts.aux["maps"], path)
            watch = None if (probe := layout.get(probes, path)) is None else self._watch(probe, maps, parts.aux)
            static = Static(self.counts(kernel.shape)[0], layout.get(axes, path)["kernel"][1:], self.config.parity)
            return SpIELNode(delta, maps["idx"], watch, static)

        return base, self.at_targets(node, base)

    def _watch(self, probe: jax.Array, maps: dict[str, jax.Array], aux: Tree) -> Watch:
        if self.current == SEARCH:
            return Watch(probe)
        return Watch(probe, maps["candidates"], jnp.broadcast_to(aux["samples"] == 0, len(probe)))

    def merge(self, parts: Parts) -> Tree:
        """The base, deltas added at their positions in at least float32 and rounded once; no map stays quantised."""

        def replace(path: Path, kernel: Any) -> Any:
            params = layout.get(parts.params, path[:-1]) if path[-1] == "kernel" else None
            if params is None:
                return plain(kernel)
            wide = jnp.promote_types(kernel.dtype, jnp.float32)
            add = lambda *layer: tuned(*layer, wide).astype(kernel.dtype)
            return jax.vmap(add)(dense(kernel, wide), params["delta"], layout.get(parts.aux["maps"], path[:-1])["idx"])

        return layout.map_leaves(replace, parts.frozen["base"])

    def restarted(self, aux: Tree) -> Tree:
        """With no samples: where the other run was left in the middle of a phase, its sums are of other weights."""
        return aux | {"samples": np.zeros((), np.int32)} if self.gathers else aux

    def stage(self, step: int) -> str:
        """Plain, or gathering, the first of which may have to search in the dense gradient."""
        if not (self.gathers and self.clock.gathers(step)):
            return PLAIN
        dense = self.accumulate > 1 and not self.config.parity
        return SEARCH if dense and self.clock.opens(step) else GATHER

    def staged(self, stage: str) -> "SpIEL":
        """See `stage`."""
        return dataclasses.replace(self, current=stage)

    def probes(self, parts: Parts) -> Tree:
        """None in a plain step; else what `Watch` takes."""
        if self.current == PLAIN:
            return {}

        def zeros(path: Path, kernel: Any) -> jax.Array:
            idx = layout.get(parts.aux["maps"], path)["idx"]
            shape = kernel.shape if self.current == SEARCH else (len(idx), 3, idx.shape[1])
            return jnp.zeros(shape, jnp.float32)

        return self.at_targets(zeros, parts.frozen["base"])

    def observe(self, parts: Parts, probe_gradients: Tree) -> Tree:
        """Adds a sample to the statistics; the first of a phase makes the candidates."""
        if self.current == PLAIN:
            return parts.aux
        samples = parts.aux["samples"]

        def add(path: Path, kernel: Any) -> dict[str, jax.Array]:
            maps, seen = layout.get(parts.aux["maps"], path), layout.get(probe_gradients, path)
            if self.current == SEARCH:
                found = jax.lax.map(lambda g: largest(g, *self.counts(kernel.shape)), seen)
                values = jax.vmap(gather)(seen, found)
            else:
                found, values = jnp.where(samples == 0, positions_of(seen), maps["candidates"]), seen[:, 0]
            summed = lambda old, new: jnp.where(samples == 0, new, old + new)
            return maps | {
                "candidates": found,
                "sum": summed(maps["sum"], values),
                "square": summed(maps["square"], values * values),
            }

        return {"maps": self.at_targets(add, parts.frozen["base"]), "samples": samples + 1}

    def terms(self, reports: list[Tree], batch: Batch, denominators: dict[str, jax.Array]) -> dict[str, Term]:
        """None; but the gradients of two passes with the deltas would be watched apart, and not summed."""
        del batch, denominators
        if self.current == GATHER and len(reports) > 1:
            raise ValueError("SpIEL's candidates are those of one forward pass; this objective has several")
        return {}

    def direction(self, config: OptimizerConfig) -> optax.GradientTransformation:
        """Adam with ages for `ag`, sparse SM3 for `ma`."""
        if self.gathers:
            return aged_adam(config.b1, config.b2, config.eps)
        shapes = self.at_targets(lambda _, kernel: {"delta": kernel.shape[1:]}, budget.abstract_base(self.arch))
        positions = lambda aux: self._each(lambda maps: {"delta": maps["idx"]}, aux["maps"])
        return sparse_sm3(shapes, positions, config.eps)

    def maintenance(self) -> Maintenance:
        """The change of the support."""
        return Maintenance(self.clock.selects, lambda state, frozen: reselect(self, self.betas, state, frozen))

    def numbers(self, count: int, done: jax.Array) -> jax.Array:
        """int32 []: n, how many of `count` weights may go after so many steps; whole numbers of Python, not rounded in
        float32."""
        table = np.array([int(count * self.clock.proportion(t)) for t in self.clock.selections] or [0], np.int32)
        return jnp.asarray(table)[(done - self.clock.phase) // self.clock.every]

    def _each(self, function: Any, tree: Tree) -> Tree:
        """A tree of `function(what a map holds)`."""
        out: dict = {}
        for path in dict.fromkeys(path[:-1] for path, _ in layout.leaves(tree)):
            layout.put(out, path, function(layout.get(tree, path)))
        return out


def make_spiel(config: TrainConfig, arch: Architecture, steps: int) -> SpIEL:
    """The method of a run of `steps` steps.

    Raises:
      UserError: for a phase that does not fit between two changes, or targets or a budget that cannot be.
    """
    settings = config.adapter.spiel
    longest = settings.phase + (1 if settings.parity else 0)
    if longest >= settings.reselect_every:
        raise UserError(
            f"config.adapter.spiel.phase is {settings.phase}, which does not fit between two changes of the support, "
            f"config.adapter.spiel.reselect_every = {settings.reselect_every} steps apart; make it shorter."
        )
    if config.optimizer.ema and settings.dtype == "bfloat16":
        raise UserError(
            "config.optimizer.ema averages deltas in config.adapter.spiel.dtype, and in 'bfloat16' an average stands "
            "still; set the dtype to 'float32', or ema to 0."
        )
    terms = config.objective.regularizers
    if config.adapter.start and (terms.l2_to_start or (terms.l1 and terms.l1_on == "change")):
        raise UserError(
            "config.adapter.start brings deltas that a change of the support moves to other places, so "
            "config.objective.regularizers.l2_to_start and l1 cannot say how far they went; leave them at 0, or set "
            "l1_on to 'weights'."
        )
    if settings.targets:
        budget.check(arch, settings)
    return SpIEL(
        settings, arch, Clock.of(settings, steps), (config.optimizer.b1, config.optimizer.b2), config.accumulate
    )
