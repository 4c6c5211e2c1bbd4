"""Prunes a checkpoint, layer by layer: what `scripts/prune.py` does.

The inputs of a layer are measured in a pass over the data with all layers before it pruned already, as they will be. So
there are as many passes as layers, each of the whole model, whose layers stay stacked.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from tqdm import tqdm

from jaxsft.config import DSnoTConfig, ModelConfig, PruneConfig
from jaxsft.data.templates import as_trained
from jaxsft.errors import UserError
from jaxsft.evaluation.rows import batches, read_examples
from jaxsft.files import check_new_folder
from jaxsft.models import layout
from jaxsft.pruning import masks
from jaxsft.pruning.dsnot import refine
from jaxsft.scoring.statistics import Moments, input_statistics
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_hf
from jaxsft.training.restore import OpenModel, open_model

Tree = Any
Measure = Callable[[Tree], tuple[Tree, int]]  # parameters -> the moments of all targeted maps, and the examples


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one map is pruned: static in the compiled function."""

    score: str
    sparsity: masks.Sparsity
    refined: bool
    cycles: int
    threshold: float
    power: float
    paper: bool

    def keeps(self, kernel: jax.Array, inputs: Moments | None, examples: int) -> jax.Array:
        """bool [in, out] of a kernel, where it is kept."""
        wanda = None if inputs is None else masks.wanda(kernel, inputs.energy, examples)
        kept = masks.kept(wanda if self.score == "wanda" else masks.magnitude(kernel), self.sparsity)
        if not self.refined:
            return kept
        config = DSnoTConfig((), self.cycles, self.threshold, self.power, self.paper)
        return refine(kernel, kept, wanda, inputs.sum / examples, inputs.variance, config, self.sparsity)[0]


def prune(config: PruneConfig, output: epath.PathLike) -> str:
    """Writes the model that `config` names, less what is pruned, into a new folder; returns the lines on the result.

    Raises:
      UserError: for a model, data or targets that do not go together, and a folder that holds something.
    """
    check_new_folder(output)
    sparsity, mesh = masks.parse(config.sparsity), make_mesh(config.mesh)
    model = _open(config.model, mesh)
    arch = model.decoder.arch
    layout.select(arch, model.params, config.targets, "config.targets")
    modules = _modules(model, config.targets)
    refined = set(_modules(model, config.dsnot.targets)) if config.dsnot.targets else set()
    if stray := sorted(refined - set(modules)):
        raise UserError(f"config.dsnot.targets name {stray[0]}, which config.targets leave out; prune it first.")
    measure = _measure(config, model, mesh) if config.score == "wanda" or refined else None
    params = model.params
    groups = _in_order(modules)
    with jax.set_mesh(mesh), tqdm(groups, desc="pruning", unit="layer", leave=False, disable=None) as bar:
        for group in bar:
            moments, examples = (None, 0) if measure is None else measure(params)
            for module in group:
                rule = Rule(config.score, sparsity, module in refined, *_settings(config.dsnot))
                params = _prune(arch, params, module, moments, examples, rule)
    lines = sparsity_report(arch, params, modules)
    return "\n".join([*lines, export_hf(dataclasses.replace(model, params=params), output, mesh)])


def sparsity_report(arch: Any, params: Tree, modules: list[str]) -> list[str]:
    """A line for each kind of map: the share of its weights that are zero, over its layers."""
    shares: dict[str, list[float]] = {}
    for module in modules:
        path, row = layout.locate(arch, f"{module}.kernel")
        leaf = layout.get(params, path)
        kind = module.split(".", 2)[2] if row is not None else module
        shares.setdefault(kind, []).append(float(jnp.mean((leaf if row is None else leaf[row]) == 0)))
    width = max(map(len, shares))
    return [f"{kind:<{width}}  {100 * sum(s) / len(s):5.2f} % zeros" for kind, s in shares.items()]


def _open(config: ModelConfig, mesh: Any) -> OpenModel:
    """As a plain model in float32, which holds every weight of a file exactly: what is kept is kept to the bit."""
    opened = open_model(config.path, dataclasses.replace(config, param_dtype="float32"), mesh)
    with jax.set_mesh(mesh):
        return dataclasses.replace(opened, params=opened.merged(), adapters=None, method=None, parts=None)


def _modules(model: OpenModel, targets: tuple[str, ...]) -> list[str]:
    """The linear maps that patterns name, in the order of the layers.

    Raises:
      UserError: if there are none, or the embedding is among them.
    """
    arch = model.decoder.arch
    names = [name.rpartition(".") for name in layout.flatten(arch, model.params)]
    found = [module for module, _, leaf in names if leaf in ("kernel", "embedding") and layout.matches(targets, module)]
    if not found:
        raise UserError(f"config.targets {targets!r} name no linear map; name some, such as 'layers.*.mlp.*_proj'.")
    if "embed" in found:
        raise UserError("config.targets name embed, which looks rows up and multiplies nothing; leave it out.")
    return found


def _in_order(modules: list[str]) -> list[list[str]]:
    """The maps of each layer together, the head last."""
    layers: dict[str, list[str]] = {}
    for module in modules:
        layers.setdefault(".".join(module.split(".")[:2]), []).append(module)
    return sorted(layers.values(), key=lambda group: group[0] == "head")


def _measure(config: PruneConfig, model: OpenModel, mesh: Any) -> Measure:
    """The pass over the data."""
    if not (config.data.path or config.data.sources):
        raise UserError("config.data.path is empty; name text or conversations on which inputs are measured.")
    data = as_trained(config.data, model.template, model.condition)
    dataset = read_examples(data, model.tokenizer, model.decoder.arch)
    if jax.process_index() == 0:
        print(dataset.report, flush=True)

    def measure(params: Tree) -> tuple[Tree, int]:
        rows = batches(dataset, data, config.batch_size, mesh, "measuring")
        return input_statistics(model.decoder, params, None, rows, mesh, config.targets)

    return measure


def _prune(arch: Any, params: Tree, module: str, moments: Tree | None, examples: int, rule: Rule) -> Tree:
    """The parameters with zeros in one map."""
    target, row = layout.locate(arch, f"{module}.kernel")
    inputs = None if moments is None else layout.get(moments, target[:-1]).row(row)
    kernel = layout.get(params, target)
    pruned = _pruner(rule, row is not None, kernel.sharding)(kernel, inputs, row or 0, examples)
    return layout.map_leaves(lambda path, leaf: pruned if path == target else leaf, params)


@functools.cache
def _pruner(rule: Rule, stacked: bool, sharding: Any) -> Callable[..., jax.Array]:
    def prune(kernel: jax.Array, inputs: Moments | None, row: jax.Array, examples: jax.Array) -> jax.Array:
        own = kernel[row] if stacked else kernel
        own = jnp.where(rule.keeps(own, inputs, examples), own, jnp.zeros_like(own))
        return kernel.at[row].set(own) if stacked else own

    return jax.jit(prune, donate_argnums=0, out_shardings=sharding)


def _settings(config: DSnoTConfig) -> tuple[int, float, float, bool]:
    return config.cycles, config.threshold, config.power, config.paper
