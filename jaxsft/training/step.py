"""The training step, a pure function: (state, frozen, batch) -> (state, metrics).

Every denominator is computed over the whole global batch before it is cut into micro-batches, so gradient accumulation,
sharding and packing cannot change the gradient.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsft.adapters.method import Method, Parts
from jaxsft.data.batch import Batch
from jaxsft.models.decoder import Decoder
from jaxsft.models.projection import Context
from jaxsft.objectives.objective import ModelOutput, Objective
from jaxsft.objectives.terms import Term, ratio, total
from jaxsft.sharding import constrain
from jaxsft.training.gradients import layer_norms
from jaxsft.training.optimizer import Optimizer
from jaxsft.training.state import Frozen, TrainState

Tree = Any
Keys = tuple[jax.Array, jax.Array]  # of the step, and of the micro-batch
Step = Callable[[TrainState, Frozen, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    decoder: Decoder,
    method: Method,
    objective: Objective,
    optimizer: Optimizer,
    accumulate: int = 1,
    axes: Tree | None = None,
    layer_grad_norms: bool = False,
) -> Step:
    """Builds the step.

    Args:
      decoder: the model's forward pass.
      method: how trained and frozen arrays make up the model.
      objective: the loss.
      optimizer: directions and schedule.
      accumulate: micro-batches; must divide the rows of the batch.
      axes: logical axes of the trained parameters; gradients are pinned to them.
      layer_grad_norms: metrics of each layer's gradient besides.

    Returns:
      A pure function, to be jitted with the state donated. Its metrics are float32 scalars.
    """
    transformation = optax.with_extra_args_support(optimizer.transformation)

    def loss(params: Tree, probes: Tree, aux: Tree, frozen: Frozen, batch: Batch, keys: Keys, denominators: dict):
        parts = frozen.parts(params, aux)
        model = BoundModel(decoder, method, parts, probes, keys)
        terms, sums = objective(model, batch, denominators)
        terms = terms | method.terms(model.reports, batch, denominators)
        shares = {f"loss/{name}": term.coefficient * ratio(term.sum, term.denominator) for name, term in terms.items()}
        return total(terms), sums | (shares if len(shares) > 1 else {})

    def gradients(state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array):
        """Loss, metric sums and gradients, summed over the micro-batches, and the method's next `aux`."""
        denominators = objective.denominators(batch) | method.denominators(batch)
        start = state.aux["method"]

        def micro_step(micro: Batch, index: jax.Array | int, aux: Tree):
            function = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
            probes = method.probes(frozen.parts(state.params, aux))
            (value, sums), grads = function(
                state.params, probes, aux, frozen, micro, (key, jax.random.fold_in(key, index)), denominators
            )
            return (value, sums), jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), grads)

        def observe(aux: Tree, probe_grads: Tree) -> Tree:
            return method.observe(frozen.parts(state.params, aux), probe_grads)

        if accumulate == 1:
            outputs, (grads, probe_grads) = micro_step(batch, 0, start)
            return outputs, grads, observe(start, probe_grads)
        micros = jax.tree.map(lambda x: _interleave(x, accumulate), batch)
        shapes = jax.eval_shape(micro_step, jax.tree.map(lambda x: x[0], micros), 0, start)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(carry, xs):
            sums, aux = carry
            outputs, (grads, probe_grads) = jax.tree.map(jnp.add, sums, micro_step(*xs, aux))
            if method.observes_each:
                aux, probe_grads = observe(aux, probe_grads), jax.tree.map(jnp.zeros_like, probe_grads)
            return ((outputs, (pin(grads), probe_grads)), aux), None

        (outputs, (grads, probe_grads)), aux = jax.lax.scan(add, (zeros, start), (micros, jnp.arange(accumulate)))[0]
        return outputs, grads, aux if method.observes_each else observe(start, probe_grads)

    def pin(grads: Tree) -> Tree:
        return grads if axes is None else jax.tree.map(lambda g, a: constrain(g, *a), grads, axes)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        (value, sums), grads, method_aux = gradients(state, frozen, batch, key)

        def penalty(params: Tree) -> tuple[jax.Array, dict[str, jax.Array]]:
            parts = frozen.parts(params, state.aux["method"])
            terms = method.penalties(parts) | objective.penalties(parts)
            return total(terms), _shares(terms)

        (extra, shares), extra_grads = jax.value_and_grad(penalty, has_aux=True)(state.params)
        if shares:
            value, grads = value + extra, jax.tree.map(jnp.add, grads, extra_grads)
            sums = {"loss/data": value - extra} | sums | shares

        mask = method.update_mask(state.params)
        masked = lambda tree: tree if mask is None else jax.tree.map(lambda x, m: x * m, tree, mask)
        grads = masked(pin(grads))
        learning_rate = optimizer.schedule(state.step, state.horizon)
        more = {"aux": state.aux["method"], "learning_rate": learning_rate}
        directions, opt_state = transformation.update(grads, state.opt_state, state.params, **more)
        updates = masked(jax.tree.map(lambda d: -learning_rate * d, directions))
        params = optax.apply_updates(state.params, updates)
        projected = objective.project(frozen.parts(params, state.aux["method"]), learning_rate)
        params = projected if mask is None else jax.tree.map(jnp.where, mask, projected, params)

        aux = state.aux | {"method": method_aux}
        if "ema" in aux:
            decay = optimizer.ema
            aux["ema"] = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, aux["ema"], params)
        metrics = {
            "loss": value,
            **objective.metrics(sums),
            **{name: share for name, share in sums.items() if name.startswith("loss/")},
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "learning_rate": learning_rate,
            "tokens": jnp.sum(batch.segment_ids > 0),
        }
        if layer_grad_norms:
            metrics |= layer_norms(decoder.arch, grads)
        metrics = {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}
        return TrainState(state.step + 1, params, opt_state, state.key, state.horizon, aux), metrics

    return step


class BoundModel:
    """The model as an objective sees it, with parameters bound.

    Attributes:
      key: of this step and micro-batch, for an objective's own randomness; None in evaluation.
      step_key: of this step; see `jaxsft.objectives.objective.Model`.
      parts: the method's arrays, for what an objective keeps among them.
      embed_dim: the width of the embedding, D.
      reports: what the adapters said, a tree a forward pass.
    """

    def __init__(
        self, decoder: Decoder, method: Method, parts: Parts, probes: Tree, keys: Keys | None, train: bool = True
    ):
        self._decoder, self._train = decoder, train
        self.step_key, self.key = keys or (None, None)
        self.parts, self.embed_dim = parts, decoder.arch.embed_dim
        self._params, self._adapters = method.compose(parts, probes)
        self._method, self._probes = method, probes
        self.reports: list[Tree] = []

    def __call__(self, batch: Batch, *, adapter: bool = True, embed_noise: jax.Array | None = None) -> ModelOutput:
        """A forward pass; `adapter=False` is the model that the run started from: under an adapter the base, at no
        extra memory, and in full fine-tuning the parameters that `parts.start` keeps."""
        params, adapters = self._params, self._adapters if adapter else None
        if not adapter and self._adapters is None:
            if self.parts.start is None:
                raise ValueError("there is no adapter to switch off: a fully trained model is not its own reference")
            params, _ = self._method.compose(self.parts._replace(params=self.parts.start), self._probes)
        ctx = Context(self.key, batch.example_ids, batch.segment_ids > 0, batch.extras, self._train and adapter)
        out = self._decoder.forward(
            params,
            batch.tokens,
            batch.positions,
            batch.segment_ids,
            adapters=adapters,
            ctx=ctx,
            embed_noise=embed_noise,
        )
        if adapter and adapters is not None:
            self.reports.append(out.aux)
        head_params = self._decoder.head_params(params, adapters)
        norm = functools.partial(self._decoder.final_norm, params)
        return ModelOutput(out.hidden, self._decoder.head, head_params, out.aux, out.unnormed, norm)


def _shares(terms: dict[str, Term]) -> dict[str, jax.Array]:
    """What each term contributes to the loss, as metrics."""
    return {f"loss/{name}": term.coefficient * ratio(term.sum, term.denominator) for name, term in terms.items()}


def _interleave(x: jax.Array, k: int) -> jax.Array:
    """[B, ...] -> [k, B / k, ...]: micro-batch j takes rows j, j + k, ..., so each device keeps the rows it holds."""
    return jnp.moveaxis(x.reshape(x.shape[0] // k, k, *x.shape[1:]), 1, 0)
