"""A run's compiled program: everything that is known before a single weight is loaded.

Shapes, shardings, and the step compiled ahead of time. It needs devices to compile for, not devices to run on, so the
same code serves training and planning for absent TPUs.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding

from jaxsft.adapters.method import Method, Parts
from jaxsft.adapters.registry import make_method
from jaxsft.config import ModelConfig, TrainConfig
from jaxsft.data.batch import Batch
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture, post_layers_of
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder
from jaxsft.models.quantized import quantize_params
from jaxsft.objectives.objective import Objective
from jaxsft.objectives.registry import make_objective
from jaxsft.objectives.regularizers import kept
from jaxsft.sharding import SUBMODEL, batch_sharding, data_shards, replicated, tree_shardings
from jaxsft.training import submodels
from jaxsft.training.checkpoint import abstract_like
from jaxsft.training.optimizer import Optimizer, make_horizon, make_optimizer
from jaxsft.training.state import Frozen, Horizon, TrainState
from jaxsft.training.step import Step, make_step

Tree = Any


@dataclasses.dataclass
class Program:
    """What `build` returns.

    Attributes:
      base: the base's parameters as ShapeDtypeStructs with shardings.
      state: TrainState, likewise.
      frozen: likewise, what is not trained; its `start` and `fisher` are None where no term of the loss asks.
      batch: likewise, a Batch.
      steps: a kind of step (`Method.stage`) -> it as a jitted function, state donated; always the same one.
      lengths: of a run of several sub-models, each one's steps; state and batch then have a leading axis.
    """

    config: TrainConfig
    mesh: Mesh
    decoder: Decoder
    method: Method
    optimizer: Optimizer
    base: Tree
    state: TrainState
    frozen: Frozen
    batch: Batch
    steps: Callable[[str], Step]
    horizon: Horizon
    lengths: tuple[int, ...] = ()

    @property
    def step(self) -> Step:
        """The step, of methods that have but one kind; else the one that comes when nothing is due."""
        return self.steps("")

    def step_at(self, number: int) -> Step:
        """The step number `number`, from 1."""
        return self.steps(self.method.stage(number))

    @property
    def base_dtype(self) -> Any:
        """The dtype in which the base is loaded: float32 where it is trained."""
        return jax.tree.leaves(self.base)[0].dtype

    def compile(self, stage: str = "") -> Any:
        """A kind of step for these shapes and shardings, compiled."""
        with jax.set_mesh(self.mesh):
            return self.steps(stage).lower(self.state, self.frozen, self.batch).compile()

    def load_base(self, path: epath.PathLike) -> Tree:
        """The base that the run starts from: the checkpoint's, or new parameters where the config asks for them."""
        if self.config.model.init == "random":
            return self.random_base()
        model = self.config.model
        stored = model.quantization, model.double_quantization
        return load_params(path, self.decoder, self.mesh, self.base_dtype, *stored)

    def random_base(self) -> Tree:
        """New parameters for the base, drawn from the config's seed."""
        new = self.config.model.new
        fresh = lambda key: self.stored(self.decoder.init(key, new.embed_std, new.scaled_init))
        shardings = jax.tree.map(lambda s: s.sharding, self.base)
        with jax.set_mesh(self.mesh):
            return jax.jit(fresh, out_shardings=shardings)(jax.random.key(self.config.seed))

    def stored(self, params: Tree) -> Tree:
        """Plain parameters in the dtypes of the base, quantised if the config says so; pure."""
        model = self.config.model
        quantized = quantize_params(params, model.quantization, model.double_quantization, self.base_dtype)
        return jax.tree.map(lambda p, s: p.astype(s.dtype), quantized, self.base)

    @property
    def asks_base(self) -> bool:
        """Whether a resumed run needs the base."""
        return bool(jax.tree.leaves((self.frozen.method, self.frozen.start)))

    def initial(self, base: Tree) -> tuple[TrainState, Frozen]:
        """State and frozen arrays of a fresh run, in their shardings, less the Fisher; `base` is donated."""

        def start(base: Tree) -> tuple[TrainState, Frozen]:
            keeps_start = self.frozen.start is not None
            state, frozen = _initial(self.config, self.method, self.optimizer, base, keeps_start)
            if self.lengths:
                state = submodels.repeat(state, len(self.lengths))
            return dataclasses.replace(state, horizon=self.horizon), frozen

        return self._from_base(start, (self.state, self._frozen_of_base), base)

    def frozen_only(self, base: Tree) -> Frozen:
        """What a resumed run needs of the base; the rest comes from the checkpoint. `base` is donated."""
        frozen = lambda base: _frozen(
            self.method.split(base, jax.random.key(self.config.seed)), self.frozen.start is not None
        )
        return self._from_base(frozen, self._frozen_of_base, base)

    @property
    def _frozen_of_base(self) -> Frozen:
        return dataclasses.replace(self.frozen, fisher=None)

    def _from_base(self, function: Any, like: Tree, base: Tree) -> Tree:
        before, after = (jax.tree.map(lambda s: s.sharding, tree) for tree in (self.base, like))
        with jax.set_mesh(self.mesh):
            return jax.jit(function, in_shardings=(before,), out_shardings=after, donate_argnums=0)(base)


def build(config: TrainConfig, arch: Architecture, mesh: Mesh, steps: int | Sequence[int], example: Batch) -> Program:
    """Lays out and traces a run.

    Args:
      config: the run's.
      arch: the model's sizes.
      mesh: of devices to run on or only to compile for.
      steps: length of the run; of a run of sub-models, of each one's.
      example: a batch of the run (of one sub-model), or one of ShapeDtypeStructs: its shapes, with
        `config.batch_size` rows.

    Raises:
      UserError: if rows, micro-batches or weights do not divide by the mesh, or the config leaves nothing to train.
    """
    check_rows(config, mesh)
    dtype, frozen_dtype = dtypes(config.model, mesh)
    decoder = Decoder(arch, dtype=dtype, remat=config.model.remat, attention=config.model.attention)
    lengths = () if isinstance(steps, int) else tuple(steps)
    method = make_method(config, arch, max(lengths, default=0) or steps)
    check_submodels(lengths, method, mesh)
    if method.trains_base and config.model.quantization != "none":
        raise UserError(
            f"config.model.quantization is {config.model.quantization!r}, which freezes the base, but "
            "config.adapter.kind is 'none', which trains it; choose an adapter, such as 'lora', or leave it at 'none'."
        )
    plain = decoder.abstract_params(jnp.float32 if method.trains_base else frozen_dtype)
    stored = config.model.quantization, config.model.double_quantization
    abstract_base = jax.eval_shape(lambda base: quantize_params(base, *stored), plain)
    where, patterns = method.patterns
    layout.select(arch, abstract_base, patterns, where)  # refuses patterns that name nothing
    parts = jax.eval_shape(lambda base: method.split(base, jax.random.key(config.seed)), abstract_base)
    if not jax.tree.leaves(parts.params):
        raise UserError(f"{where} is {patterns!r}, which leaves nothing to train; choose other patterns.")
    axes: Parts = method.axes(decoder.logical_axes())
    optimizer = make_optimizer(config.optimizer, arch, parts.params, method)
    objective, by_layer = make_objective(config.objective), config.log.layer_grad_norms

    keeps_start, keeps_fisher = kept(config.objective.regularizers, method.trains_base)
    shapes, frozen = jax.eval_shape(lambda base: _initial(config, method, optimizer, base, keeps_start), abstract_base)
    state_shardings = _state_shardings(shapes, axes, mesh)
    state = abstract_like(shapes, state_shardings)
    frozen = Frozen(
        abstract_like(frozen.method, tree_shardings(axes.frozen, frozen.method, mesh)),
        state.params if keeps_start else None,
        state.params if keeps_fisher else None,
    )
    base = abstract_like(abstract_base, tree_shardings(decoder.logical_axes(), abstract_base, mesh))
    rows = batch_sharding(mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), example)

    horizon = make_horizon(config.optimizer, steps) if not lengths else None
    if lengths:
        horizon = submodels.stack([make_horizon(config.optimizer, length) for length in lengths])
        state_shardings = submodels.shardings(state_shardings)
        state, batch = submodels.shapes(state, len(lengths)), submodels.shapes(batch, len(lengths))

    @functools.cache
    def jitted(stage: str) -> Step:
        one = make_step(decoder, method.staged(stage), objective, optimizer, config.accumulate, axes.params, by_layer)
        return jax.jit(
            submodels.together(one) if lengths else one,
            in_shardings=jax.tree.map(lambda s: s.sharding, (state, frozen, batch)),
            out_shardings=(state_shardings, replicated(mesh)),
            donate_argnums=0,
        )

    return Program(config, mesh, decoder, method, optimizer, base, state, frozen, batch, jitted, horizon, lengths)


def architecture(config: ModelConfig, path: epath.PathLike) -> Architecture:
    """What a run trains: as the folder's `config.json` describes it and, for a new model, as the config wants it.

    Raises:
      UserError: see `load_architecture` and `Architecture.with_post_layers`.
    """
    arch, new = load_architecture(path), config.new
    if config.init != "random":
        return arch
    if new.init_std is not None:
        arch = dataclasses.replace(arch, init_std=new.init_std)
    if new.n_post_layers is not None:
        return arch.with_post_layers(new.n_post_layers, "config.model.new.n_post_layers")
    if new.post_ln_alpha is not None:
        count = post_layers_of(new.post_ln_alpha, arch.num_layers)
        return arch.with_post_layers(count, "config.model.new.post_ln_alpha")
    return arch


def dtypes(config: ModelConfig, mesh: Mesh) -> tuple[Any, Any]:
    """Compute dtype, and dtype of frozen parameters."""
    auto = jnp.float32 if mesh.devices.flat[0].platform == "cpu" else jnp.bfloat16
    pick = lambda name: jnp.dtype(auto if name == "auto" else name)
    return pick(config.dtype), pick(config.param_dtype)


def abstract_batch(rows: int, length: int, slots: int) -> Batch:
    """The shapes of a batch without recipe extras."""
    ints, floats = (jax.ShapeDtypeStruct((rows, length), d) for d in (jnp.int32, jnp.float32))
    extras = {"example_index": jax.ShapeDtypeStruct((rows, slots), jnp.int32)}
    return Batch(ints, ints, ints, ints, ints, floats, extras)


def _initial(
    config: TrainConfig, method: Method, optimizer: Optimizer, base: Tree, keeps_start: bool
) -> tuple[TrainState, Frozen]:
    key = jax.random.key(config.seed)
    parts = method.split(base, key)
    aux = {"method": parts.aux} | ({"ema": jax.tree.map(jnp.copy, parts.params)} if optimizer.ema else {})
    opt_state = optimizer.transformation.init(parts.params)
    horizon = make_horizon(config.optimizer, 0)  # its shape; the run's own comes with `Program.initial`
    state = TrainState(jnp.zeros((), jnp.int32), parts.params, opt_state, jax.random.key_data(key), horizon, aux)
    return state, _frozen(parts, keeps_start)


def _frozen(parts: Parts, keeps_start: bool) -> Frozen:
    """Of the parts of a fresh run; the start is a copy, for the parameters themselves are donated."""
    return Frozen(parts.frozen, jax.tree.map(jnp.copy, parts.params) if keeps_start else None)


def _state_shardings(shapes: TrainState, axes: Parts, mesh: Mesh) -> TrainState:
    """Each array that stands for a parameter (a moment, an average) is sharded like it; the rest is replicated.

    In Auto mode `jit(tx.init)` would replicate the moments without a word, so they are matched here by path and shape:
    a moment's path ends in its parameter's path.
    """
    params = tree_shardings(axes.params, shapes.params, mesh)
    known = {
        _keys(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(shapes.params), jax.tree.leaves(params))
    }

    def like_parameter(path: Any, leaf: Any) -> NamedSharding:
        keys = _keys(path)
        for start in range(len(keys)):
            if keys[start:] in known:
                shape, sharding = known[keys[start:]]
                return sharding if shape == leaf.shape else replicated(mesh)
        return replicated(mesh)

    aux = dict(jax.tree_util.tree_map_with_path(like_parameter, shapes.aux))
    aux["method"] = tree_shardings(axes.aux, shapes.aux["method"], mesh)
    opt_state = jax.tree_util.tree_map_with_path(like_parameter, shapes.opt_state)
    whole = replicated(mesh)
    return TrainState(whole, params, opt_state, whole, jax.tree.map(lambda _: whole, shapes.horizon), aux)


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def check_rows(config: TrainConfig, mesh: Mesh) -> None:
    """Refuses a batch that does not divide into micro-batches over the mesh.

    Raises:
      UserError: with the multiple that would do.
    """
    shards = data_shards(mesh)
    if config.batch_size % (config.accumulate * shards):
        raise UserError(
            f"config.batch_size is {config.batch_size} rows, which do not divide into {config.accumulate} "
            f"micro-batches (config.accumulate) over {shards} data-parallel devices (replica * fsdp); "
            f"choose a multiple of {config.accumulate * shards}, or another mesh."
        )


def check_submodels(lengths: Sequence[int], method: Method, mesh: Mesh) -> None:
    """Refuses sub-models that cannot be trained at once.

    Raises:
      UserError: saying why, and what to do.
    """
    ways = dict(zip(mesh.axis_names, mesh.axis_sizes))[SUBMODEL]
    if ways > 1 and (not lengths or len(lengths) % ways):
        raise UserError(
            f"config.mesh.submodel is {ways}, which does not divide config.submodels = {len(lengths)}; choose a "
            "divisor, or leave it at 1."
        )
    if lengths and method.trains_base:
        raise UserError(
            "config.submodels trains adapters over a base that all share, but config.adapter.kind is 'none', which "
            "trains the base; choose an adapter, or train part after part (config.data.part)."
        )
    if method.maintenance() is not None and len(set(lengths)) > 1:
        raise UserError(
            f"config.submodels are of unequal lengths ({', '.join(map(str, lengths))} steps), but adapters of the kind "
            f"{method.name!r} go by a clock that all share; set config.steps, or disperse into equal parts."
        )


def check_grouping(config: TrainConfig, objective: Objective) -> None:
    """Refuses data that does not stand together as the objective needs it.

    Raises:
      UserError: naming the grouping that it needs, and for pairs that it would not tell apart.
    """
    if objective.grouping and config.data.grouping != objective.grouping:
        raise UserError(
            f"the objective {config.objective.name!r} needs config.data.grouping = {objective.grouping!r}, but it is "
            f"{config.data.grouping!r}."
        )
    if config.data.grouping == "preference" and objective.grouping != "preference":
        raise UserError(
            f"config.data.grouping is 'preference', but the objective {config.objective.name!r} would learn rejected "
            "answers like chosen ones; choose a loss on pairs, such as 'dpo', or leave the grouping at 'example', "
            "which uses the chosen answers alone."
        )


def parameter_count(tree: Tree) -> int:
    """Numbers in a tree of arrays or shapes; a quantised kernel counts its weights."""
    return int(sum(np.prod(x.shape) for _, x in layout.leaves(tree)))
