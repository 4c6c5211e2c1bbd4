"""LoRA adapters of one base become one adapter: `lora_factor`, `lora_concat` and `lora_svd` of `config.method`.

It reads workdirs of LoRA runs and adapters' folders, and leaves an adapter's folder in PEFT's format; the base's
weights are never opened. See `jaxsft.merging.factors` for the three, and for when the first is exact.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxsft import __version__
from jaxsft.adapters.folder import Saved, Stored, is_adapter, read_card, save_stored
from jaxsft.adapters.lora import LoRA
from jaxsft.adapters.peft import save_factors
from jaxsft.config import MergeConfig
from jaxsft.data.classes import inference_condition
from jaxsft.data.tokenizer import Tokenizer, load_tokenizer
from jaxsft.errors import UserError
from jaxsft.files import new_folder, write_json
from jaxsft.merging.factors import Factors, concat_factors, mean_factors, truncate
from jaxsft.merging.linear import check_divisible
from jaxsft.models.architecture import Architecture
from jaxsft.models.checkpoint import copy_companions, fingerprint, load_architecture, resolve
from jaxsft.sharding import make_mesh
from jaxsft.training.export import write_template
from jaxsft.training.restore import run_adapter, stored_base, tokenizer_source
from jaxsft.training.runs import is_workdir, trained_by, weights_fingerprint
from jaxsft.training.saved import find_base, load_folder
from jaxsft.validation import to_dict

READS = {"method", "models", "weights", "mesh"}


@dataclasses.dataclass(frozen=True)
class AdapterPlan:
    """A merge of adapters that can be carried out.

    Attributes:
      config: what was asked for.
      adapters: one for each model.
      weights: likewise.
      base: the folder of the model that all were trained on.
      arch: its sizes.
      stored: how it was stored under all of them.
      asked: how the last of the models is prompted, and so the result.
    """

    config: MergeConfig
    adapters: list[Saved]
    weights: tuple[float, ...]
    base: epath.Path
    arch: Architecture
    stored: Stored
    asked: "Asked"

    @property
    def fingerprints(self) -> list[str]:
        """Of the models and the base."""
        return [*map(_fingerprint, self.config.models), fingerprint(self.base)]

    @property
    def modules(self) -> list[str]:
        """The adapted maps."""
        return sorted({name.rpartition(".")[0] for adapter in self.adapters for name in adapter.params})

    @property
    def rank(self) -> int:
        """Of the result."""
        ranks = [adapter.settings.rank for adapter in self.adapters]
        if self.config.method == "lora_factor":
            return ranks[0]
        return sum(ranks) if self.config.method == "lora_concat" else min(self.config.rank, sum(ranks))

    def describe(self) -> list[str]:
        """Lines for the one who starts it."""
        lines = [f"method {self.config.method}, base {self.base}"]
        for path, adapter, weight in zip(self.config.models, self.adapters, self.weights):
            lines.append(f"  {weight:g} x {path}, rank {adapter.settings.rank}")
        return [*lines, f"  writes an adapter of rank {self.rank} for {len(self.modules)} maps"]

    def carry_out(self, output: epath.PathLike) -> str:
        """Writes the merged adapter into a new folder; returns a line on it.

        Raises:
          UserError: for factors that are not finite, and a folder that holds something or cannot be written.
        """
        merged, lost = {}, 0.0
        for module in self.modules:
            (a, b), share = self._merge(module)
            if not _finite(a, b):
                raise UserError(f"{module} leaves the range of float32 when it is merged; choose other weights.")
            merged[module], lost = {"lora_a": np.asarray(a), "lora_b": np.asarray(b)}, max(lost, float(share))
        scale = LoRA(self.adapters[0].settings, self.arch).scale if self.config.method == "lora_factor" else 1.0
        line = f"{output}: {self.config.method} of {len(self.adapters)} adapters, rank {self.rank}"
        if self.config.method == "lora_svd":
            line += f"; the largest share of an update that is cut off is {lost:.2%}"
        if jax.process_index():
            return line
        with new_folder(output) as folder:
            copy_companions(self.asked.folder, folder)
            line += write_template(self.asked, folder)
            save_stored(folder, self.stored)
            save_factors(folder, self.arch, merged, self.rank, scale * self.rank, str(self.base))
            write_json(folder / "merge.json", self._manifest(line, lost))
        return line

    def _merge(self, module: str) -> tuple[Factors, float]:
        factors = [self._factors(adapter, module) for adapter in self.adapters]
        for path, pair in zip(self.config.models, factors):
            if not _finite(*pair):
                raise UserError(f"{path}: {module} holds numbers that are not finite; restore it.")
        if self.config.method == "lora_factor":
            return mean_factors(factors, self.weights), 0.0
        scales = [LoRA(adapter.settings, self.arch).scale for adapter in self.adapters]
        whole = concat_factors(factors, scales, self.weights)
        return truncate(*whole, self.rank) if self.config.method == "lora_svd" else (whole, 0.0)

    def _factors(self, adapter: Saved, module: str) -> Factors:
        """Those of one map, zeros where it has none."""
        if f"{module}.lora_a" in adapter.params:
            return tuple(jnp.asarray(adapter.params[f"{module}.{leaf}"]) for leaf in ("lora_a", "lora_b"))
        like = next(other for other in self.adapters if f"{module}.lora_a" in other.params).params
        fan_in, fan_out = like[f"{module}.lora_a"].shape[0], like[f"{module}.lora_b"].shape[1]
        return jnp.zeros((fan_in, adapter.settings.rank)), jnp.zeros((adapter.settings.rank, fan_out))

    def _manifest(self, line: str, lost: float) -> dict:
        name = lambda path: {"path": path, "fingerprint": _fingerprint(path)}
        return {
            "kind": "merge",
            "method": self.config.method,
            "models": [name(path) for path in self.config.models],
            "base": {"path": str(self.base), "fingerprint": fingerprint(self.base)},
            "config": to_dict(self.config),
            "cut_off": lost,
            "versions": {"jaxsft": __version__, "jax": jax.__version__, "numpy": np.__version__},
            "result": line,
        }


def _finite(*arrays: jax.Array) -> bool:
    return all(bool(jnp.isfinite(array).all()) for array in arrays)


def plan_adapters(config: MergeConfig) -> AdapterPlan:
    """Reads the adapters, which are small, and checks that they go together.

    Raises:
      UserError: if they do not, or a field is set that these methods do not read.
    """
    reads, default = READS | ({"rank"} if config.method == "lora_svd" else set()), MergeConfig()
    for field in dataclasses.fields(MergeConfig):
        if field.name not in reads and getattr(config, field.name) != getattr(default, field.name):
            raise UserError(f"config.{field.name} is set, but the method {config.method!r} does not read it.")
    if not config.models:
        raise UserError("config.models is empty; name workdirs of LoRA runs or adapters' folders.")
    weights = config.weights or (1.0,) * len(config.models)
    if len(weights) != len(config.models):
        raise UserError(f"config.weights has {len(weights)} numbers for {len(config.models)} models; give each one.")
    bases = [_base(path) for path in config.models]
    for path, base in zip(config.models, bases):
        if fingerprint(base) != fingerprint(bases[0]):
            raise UserError(f"{path} and {config.models[0]} are of different bases; merge adapters of one.")
    stored = [stored_base(path) for path in config.models]
    for path, own in zip(config.models, stored):
        if own.words != stored[0].words:
            raise UserError(
                f"{path} was trained over a base stored {own.words}, {config.models[0]} over one stored "
                f"{stored[0].words}; merge adapters of one."
            )
    arch, mesh = load_architecture(bases[0]), make_mesh(config.mesh)
    adapters = [_load(path, arch, mesh) for path in config.models]
    for path, adapter in zip(config.models, adapters):
        if arch.tied and "embed.lora_a" in adapter.params:
            raise UserError(
                f"{path} adapts the embedding of a model whose head is tied to it, which the format that "
                f"{config.method!r} writes cannot hold; merge whole weights with 'linear', or leave the embedding out."
            )
    if config.method == "lora_factor":
        _check_factors(config, adapters, weights)
    return AdapterPlan(config, adapters, weights, bases[0], arch, stored[0], _asked(config.models[-1]))


def _check_factors(config: MergeConfig, adapters: list[Saved], weights: tuple[float, ...]) -> None:
    """The mean of factors means something only for adapters that differ in nothing but their training."""
    try:
        check_divisible(weights)
    except ValueError as error:
        raise UserError(f"config.method {config.method!r}: {error}.") from error
    first = adapters[0].settings
    seeds = [trained_by(path).seed if is_workdir(path) else None for path in config.models]
    for path, adapter, seed in zip(config.models, adapters, seeds):
        own = adapter.settings
        same = {
            "rank": own.rank == first.rank,
            "alpha": (own.alpha, own.rslora) == (first.alpha, first.rslora),
            "targets": adapter.params.keys() == adapters[0].params.keys(),
            "seed, and so the first A": seed == seeds[0],
        }
        if wrong := [name for name, good in same.items() if not good]:
            raise UserError(
                f"{path} and {config.models[0]} differ in {wrong[0]}, so the mean of their factors is not near the "
                "mean of their updates; use 'lora_concat', which is exact, or 'lora_svd'."
            )


class Asked(NamedTuple):
    """How a model is prompted.

    Attributes:
      folder: of the tokenizer's files.
      tokenizer: in it.
      template: as `DataConfig.template`.
      condition: as `DataConfig.condition`.
    """

    folder: epath.Path
    tokenizer: Tokenizer
    template: str
    condition: str


def _asked(path: str) -> Asked:
    folder = resolve(tokenizer_source(path))
    if is_workdir(path):
        data = trained_by(path).data
        template, condition = data.template, inference_condition(data)
    else:
        card = read_card(resolve(path))
        template, condition = card.template, card.condition
    return Asked(folder, load_tokenizer(str(folder)), template, condition)


def _load(path: str, arch: Architecture, mesh: Mesh) -> Saved:
    adapter = run_adapter(path, mesh) if is_workdir(path) else load_folder(path, arch)
    if adapter.kind != "lora":
        raise UserError(f"{path} is an adapter of the kind {adapter.kind!r}; only 'lora' has factors to merge.")
    return adapter


def _base(path: str) -> epath.Path:
    if is_workdir(path):
        return resolve(trained_by(path).model.path)
    if not is_adapter(folder := resolve(path)):
        raise UserError(f"{path} is neither a LoRA run's workdir nor an adapter's folder; use another method.")
    return find_base(folder)


def _fingerprint(path: str) -> str:
    return weights_fingerprint(path) if is_workdir(path) else fingerprint(path)
