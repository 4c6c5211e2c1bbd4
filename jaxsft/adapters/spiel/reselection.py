"""The change of the support, between two steps: deltas and positions, and the optimizer's moments with them.

A weight that comes starts at zero, with moments as if Adam had seen its S accumulated gradients g, all at their mean:
m = (sum g / S) (1 - b1^S), v = (sum g^2 / S) (1 - b2^S), and age S + 1, that of a weight with S steps behind it. The
authors' code counts micro-batches in the means and steps in the exponents, and gives an age of one less; `parity` does.
Lists stay ascending.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsft.adapters.method import Tree
from jaxsft.adapters.spiel import selection
from jaxsft.adapters.spiel.optimizer import AgedAdamState, SparseSM3State
from jaxsft.models import layout

Lists = dict[str, jax.Array]  # what moves together, by name: [k], or of all layers [layers, k]


def reselect(method: Any, betas: tuple[float, float], state: Any, frozen: Tree) -> tuple[Any, dict[str, jax.Array]]:
    """A train state with another support, and figures of the change.

    Args:
      method: a `jaxsft.adapters.spiel.method.SpIEL`.
      betas: b1 and b2 of its optimizer.
      state: the `jaxsft.training.state.TrainState`.
      frozen: the method's frozen arrays.

    Returns:
      The state; and figures over all targeted weights: `support/replaced`, the share that was replaced;
      `support/replaced/MAP`, of each kind of map; `support/forgotten`, the norm of the dropped deltas over that of all.
      With ages also `support/since_first`, the share that has been tuned since the first change or longer, and
      `support/age`, the mean over weights of the steps that their moments have behind them.
    """
    aged, aux = method.gathers, state.aux["method"]
    is_own = lambda node: isinstance(node, AgedAdamState if aged else SparseSM3State)
    (own,) = (node for node in jax.tree.leaves(state.opt_state, is_leaf=is_own) if is_own(node))
    moving = {"delta": state.params} | ({"ema": state.aux["ema"]} if "ema" in state.aux else {})
    moving |= own._asdict() if aged else {}
    new: dict[str, dict] = {name: {} for name in ("maps", *moving)}
    tallies = {}
    for path, _ in layout.leaves(method.at_targets(lambda *_: (), frozen["base"])):
        maps, shape = layout.get(aux["maps"], path), layout.get(frozen["base"], path)["kernel"].shape[1:]
        lists = {"idx": maps["idx"]} | {name: layout.get(tree, path)["delta"] for name, tree in moving.items()}
        n = method.numbers(method.counts(shape)[0], state.step)
        if aged:
            seeds = functools.partial(_seeds, method, betas, aux["samples"])
            lists, taken = jax.vmap(functools.partial(_by_gradient, seeds, shape, n))(lists, maps)
        else:
            sums = {name: layout.get(tree, path)["delta"] for name, tree in own._asdict().items()}
            one = lambda layer, n=n, shape=shape: _by_momentum(method.counts(shape)[0], n, *layer)
            lists, taken = jax.lax.map(one, (lists, sums))
        before = layout.get(state.params, path)["delta"]
        tallies[path] = _tally(method, path, before, lists, taken, state.step)
        layout.put(new["maps"], path, maps | {"idx": lists["idx"]})
        for name in moving:
            layout.put(new[name], path, {"delta": lists[name]})
    method_aux = aux | {"maps": new["maps"]} | ({"samples": jnp.zeros((), jnp.int32)} if aged else {})
    replaced = lambda node: AgedAdamState(**{name: new[name] for name in node._fields}) if aged else node
    opt_state = jax.tree.map(lambda x: replaced(x) if is_own(x) else x, state.opt_state, is_leaf=is_own)
    ema = {"ema": new["ema"]} if "ema" in moving else {}
    state = dataclasses.replace(
        state, params=new["delta"], opt_state=opt_state, aux=state.aux | {"method": method_aux} | ema
    )
    return state, _figures(tallies)


def seeded(
    total: jax.Array, square: jax.Array, samples: jax.Array, steps: jax.Array, betas: tuple[float, float]
) -> tuple[jax.Array, jax.Array]:
    """Adam's moments after so many steps, if every step had brought the mean of the samples.

    Args:
      total: the sum of the gradients, any shape.
      square: of their squares.
      samples: how many there were.
      steps: see above.
      betas: b1 and b2.
    """
    filled = lambda decay: 1 - jnp.float32(decay) ** steps.astype(jnp.float32)
    return total / samples * filled(betas[0]), square / samples * filled(betas[1])


def _seeds(method: Any, betas: tuple[float, float], samples: jax.Array, maps: Lists) -> Lists:
    """What the candidates' lists begin with."""
    parity = method.config.parity
    steps = samples // method.accumulate if parity else samples
    mu, nu = seeded(maps["sum"], maps["square"], samples, steps, betas)
    age = jnp.full(mu.shape, steps if parity else steps + 1, jnp.int32)
    return {"idx": maps["candidates"], "age": age, "mu": mu, "nu": nu}


def _by_gradient(
    seeds: Callable[[Lists], Lists], shape: tuple[int, int], n: jax.Array, lists: Lists, maps: Lists
) -> tuple[Lists, jax.Array]:
    """The lists of one layer after the change, and the newcomer in each slot as it was before."""
    scores, size = jnp.abs(maps["sum"]), shape[0] * shape[1]
    taken = selection.by_gradient(lists["idx"], lists["delta"], maps["candidates"], scores, n, size)
    return _exchange(lists, taken, seeds(maps)), taken


def _by_momentum(count: int, n: jax.Array, lists: Lists, sums: Lists) -> tuple[Lists, jax.Array]:
    best, taken = selection.by_momentum(lists["idx"], lists["delta"], sums["rows"], sums["columns"], n, count)
    return _exchange(lists, taken, {"idx": best}), taken


def _exchange(lists: Lists, taken: jax.Array, newcomers: Lists) -> Lists:
    """Newcomers in their slots, zeros where they bring nothing, and all in the order of positions."""
    comes = lambda name, old: newcomers[name][taken] if name in newcomers else jnp.zeros_like(old)
    lists = {name: jnp.where(taken >= 0, comes(name, old), old) for name, old in lists.items()}
    order = jnp.argsort(lists["idx"])
    return {name: values[order] for name, values in lists.items()}


def _tally(
    method: Any, path: layout.Path, before: jax.Array, lists: Lists, taken: jax.Array, done: jax.Array
) -> dict[str, jax.Array]:
    """Sums over the layers that are targeted."""
    rows = jnp.asarray(method.rows(path))[:, None]
    count = lambda which: jnp.sum(rows & which).astype(jnp.float32)
    energy = lambda which: jnp.sum(jnp.where(rows & which, before.astype(jnp.float32), 0) ** 2)
    tuned = jnp.arange(before.shape[1]) < method.counts(method.shape(path))[0]
    tally = {
        "all": count(tuned),
        "replaced": count(taken >= 0),
        "forgotten": energy(taken >= 0),
        "energy": energy(tuned),
    }
    if "age" in lists:
        steps = lists["age"] - (0 if method.config.parity else 1)
        tally |= {"since_first": count(tuned & (steps >= done)), "age": jnp.sum(jnp.where(rows & tuned, steps, 0.0))}
    return tally


def _figures(tallies: dict[layout.Path, dict[str, jax.Array]]) -> dict[str, jax.Array]:
    kinds: dict[str, list] = {}
    for path, tally in tallies.items():
        kinds.setdefault(".".join(path[3:]), []).append(tally)
    share = lambda name, of: sum(tally[name] for tally in of) / sum(tally["all"] for tally in of)
    every = list(tallies.values())
    energy = sum(tally["energy"] for tally in every)
    figures = {"support/replaced": share("replaced", every)}
    forgotten = sum(tally["forgotten"] for tally in every)
    figures["support/forgotten"] = jnp.sqrt(forgotten / jnp.where(energy > 0, energy, 1))
    figures |= {f"support/{name}": share(name, every) for name in ("since_first", "age") if name in every[0]}
    return figures | {f"support/replaced/{kind}": share("replaced", of) for kind, of in kinds.items()}
