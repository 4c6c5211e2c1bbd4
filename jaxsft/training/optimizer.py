"""Optimizers and schedules, from optax. The learning rate is applied by the step, so it can be logged and refilled."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsft.adapters.method import Base, Method
from jaxsft.config import OptimizerConfig
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.training.state import Horizon

Tree = Any
Schedule = Callable[[jax.Array, Horizon], jax.Array]  # steps done (int32 []), length of the run -> learning rate


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What the step needs.

    Attributes:
      transformation: gradients -> directions; the update is minus the learning rate times the direction.
      schedule: see `Schedule`.
      ema: decay of the parameters' moving average; 0 is none.
    """

    transformation: optax.GradientTransformation
    schedule: Schedule
    ema: float = 0.0


def make_optimizer(
    config: OptimizerConfig,
    arch: Architecture,
    params: Tree,
    method: Method = Base(),  # noqa: B008 (stateless)
) -> Optimizer:
    """The optimizer of a run.

    Args:
      config: see `OptimizerConfig`.
      arch: the model, for `no_decay` patterns.
      params: trained parameters, or their shapes.
      method: may bring a direction of its own, and says what weight decay acts on.

    Returns:
      Its transformation's `update` takes the arguments `learning_rate` and `aux` (the method's) where it reads them.
    """
    kernel = per_layer if config.name in LAYERWISE else lambda tx, _: tx
    parts = [method.direction(config) or kernel(DIRECTIONS[config.name](config, params), params)]
    if config.max_grad_norm:
        parts.insert(0, optax.clip_by_global_norm(config.max_grad_norm))
    if config.weight_decay:
        parts.append(_weight_decay(config, arch, params, method.decays_after))
    return Optimizer(optax.chain(*parts), make_schedule(config), config.ema)


def make_horizon(config: OptimizerConfig, steps: int) -> Horizon:
    """What the schedule needs to know of the length of a run of `steps` steps, as int32 scalars."""
    warmup = config.warmup_steps if config.warmup_steps >= 0 else round(config.warmup_ratio * steps)
    warmup = min(warmup, steps)
    rest = max(steps - warmup, 1)
    decay = min(max(round(config.decay_ratio * steps), 1), rest) if config.schedule == "wsd" else rest
    return Horizon(*(jnp.int32(count) for count in (steps, warmup, decay)))


def make_schedule(config: OptimizerConfig) -> Schedule:
    """Linear warm-up from 0 and then the named shape; step s (from 0) is updated with schedule(s, horizon).

    The last step's learning rate is one interval above `final_ratio * learning_rate`, as in optax and transformers.
    """
    peak, last = config.learning_rate, config.final_ratio
    shape = {  # share of the decay that is done -> learning rate over the peak
        "constant": jnp.ones_like,
        "linear": lambda done: 1 - (1 - last) * done,
        "cosine": lambda done: last + (1 - last) * (1 + jnp.cos(jnp.pi * done)) / 2,
        "wsd": lambda done: 1 - (1 - last) * done,
    }[config.schedule]

    def schedule(step: jax.Array, horizon: Horizon) -> jax.Array:
        begin = horizon.warmup + jnp.maximum(horizon.steps - horizon.warmup, 1) - horizon.decay
        done = jnp.clip((step - begin) / horizon.decay, 0.0, 1.0)
        climb = step / jnp.maximum(horizon.warmup, 1)
        return peak * jnp.where(step < horizon.warmup, climb, shape(done))

    return schedule


# Each: gradients -> ascent directions, without learning rate and weight decay.
DIRECTIONS: dict[str, Callable[[OptimizerConfig, Tree], optax.GradientTransformation]] = {
    "adamw": lambda c, _: optax.scale_by_adam(b1=c.b1, b2=c.b2, eps=c.eps),
    "lion": lambda c, _: optax.scale_by_lion(b1=c.b1, b2=c.b2),
    "sm3": lambda c, _: optax.scale_by_sm3(b1=c.b1, b2=c.b2, eps=c.eps),
    "adafactor": lambda c, _: optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8), optax.clip_by_block_rms(1.0), optax.ema(c.b1, debias=False)
    ),
    "muon": lambda c, params: optax.partition(
        {
            # 0.2 is the typical size of AdamW's updates; optax scales by minus the learning rate
            "matrix": optax.chain(optax.contrib.muon(1.0, beta=c.b1, consistent_rms=0.2), optax.scale(-1.0)),
            "other": optax.scale_by_adam(b1=c.b1, b2=c.b2, eps=c.eps),
        },
        lambda tree: layout.map_leaves(
            lambda path, x: "matrix" if path[0] == "stacks" and x.ndim == 2 else "other", tree
        ),
    ),
}
# These look at the shape of an array, so a stack of layers is taken layer by layer.
LAYERWISE = ("adafactor", "sm3", "muon")


def per_layer(tx: optax.GradientTransformation, params: Tree) -> optax.GradientTransformation:
    """Applies `tx` to each layer of every stack as if the layers were arrays of their own."""
    label = lambda path, _: "/".join(path[:3]) if path[0] == "stacks" else "whole"
    labels = layout.map_leaves(label, params)
    stacked = optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update))
    names = set(jax.tree.leaves(labels))
    return optax.partition({name: tx if name == "whole" else stacked for name in names}, labels)


def _weight_decay(
    config: OptimizerConfig, arch: Architecture, params: Tree, after: bool
) -> optax.GradientTransformationExtraArgs:
    """Adds decay * p to the direction of every parameter that `no_decay` does not name.

    With `after`, p is what the direction d has made of it: p - rate * d.
    """

    def mask(path: tuple[str, ...], leaf: Any) -> jax.Array:
        skipped = layout.rows(arch, path, config.no_decay)
        return (
            jnp.asarray(~skipped, jnp.float32).reshape(-1, *[1] * (leaf.ndim - 1))
            if path[0] == "stacks"
            else ~skipped[0]
        )

    masks = layout.map_leaves(mask, params)

    def update(directions: Tree, state: optax.EmptyState, params: Tree, learning_rate: Any = 0.0, **_: Any):
        moved = jax.tree.map(lambda p, d: p - learning_rate * d, params, directions) if after else params
        return jax.tree.map(lambda d, p, m: d + config.weight_decay * m * p, directions, moved, masks), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
