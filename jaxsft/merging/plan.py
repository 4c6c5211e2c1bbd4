"""What a merge will do, found out from headers and configs before any weight is read."""

import collections
import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxsft.adapters.folder import is_adapter
from jaxsft.config import MergeConfig
from jaxsft.errors import UserError
from jaxsft.merging.registry import METHODS, normalizes
from jaxsft.merging.settings import Settings, check_method
from jaxsft.merging.sources import AlignedSource, Source, open_source, source_dtype
from jaxsft.merging.statistics import check_data
from jaxsft.models import weights
from jaxsft.models.architecture import Architecture
from jaxsft.models.checkpoint import resolve
from jaxsft.models.decoder import Decoder
from jaxsft.models.weights import Tensor
from jaxsft.sharding import make_mesh
from jaxsft.training.runs import is_workdir, started_from

MAY_DIFFER = {
    "source",
    "tied",
    "max_positions",
    "init_std",
    "vocab_size",
}  # fields of an architecture; see `_check_same`


@dataclasses.dataclass(frozen=True)
class Plan:
    """A merge that can be carried out.

    Attributes:
      config: what was asked for.
      models: the sources, whose rows are those of the last one's vocabulary.
      base: likewise, or None.
      arch: of the result.
      tensors: of the result, in the order of writing.
      dtype: of the files.
      settings: weights and densities, tensor by tensor.
      mesh: the devices.
      notes: what differs between the models and is not merged.
    """

    config: MergeConfig
    models: list[Source]
    base: Source | None
    arch: Architecture
    tensors: list[Tensor]
    dtype: np.dtype
    settings: Settings
    mesh: Mesh
    notes: list[str]

    @property
    def sources(self) -> list[Source]:
        """The models, and the base if there is one."""
        return [*self.models, *filter(None, [self.base])]

    @property
    def arrays(self) -> int:
        """So many arrays of a tensor's size exist at most while it is merged, in float32."""
        return METHODS[self.config.method].arrays(len(self.models)) + (self.base is not None)

    @property
    def last(self) -> Source:
        """The model whose tokenizer, chat template and dtype the result has."""
        return self.models[-1]

    def describe(self) -> list[str]:
        """Lines for the one who starts it."""
        method, config = METHODS[self.config.method], self.config
        lines = [f"method {config.method}, sums {'' if normalizes(config) else 'not '}divided by their weights"]
        for model in self.models:
            lines.append(f"  model {model.path} ({model.fingerprint})")
        if self.base is not None:
            lines.append(f"  base  {self.base.path} ({self.base.fingerprint})")
        groups = collections.Counter(self.settings.at(tensor.logical) for tensor in self.tensors)
        for (own, density), count in groups.items():
            parts = [f"weights {_numbers(own)}"] if "weights" in method.reads else []
            parts += [f"density {_numbers(density)}"] if "density" in method.reads else []
            lines.append(f"  {count} tensors: {', '.join(parts) or 'no settings'}")
        numbers = sum(tensor.size for tensor in self.tensors)
        largest = max(tensor.size for tensor in self.tensors) * 4
        lines.append(
            f"  writes {len(self.tensors)} tensors, {numbers * self.dtype.itemsize / 1e9:.3g} GB of {self.dtype.name}; "
            f"holds {self.arrays * largest / 1e9:.3g} GB at most over {self.mesh.size} "
            f"device{'s' if self.mesh.size > 1 else ''}"
        )
        for source in self.sources:
            if source.whole:
                lines.append(f"  besides, {source.path} is opened whole: {numbers * 4 / 1e9:.3g} GB")
        return lines + [f"  note: {note}" for note in self.notes]


def make_plan(config: MergeConfig) -> Plan:
    """Opens the models and checks everything that can be checked without their weights.

    Raises:
      UserError: see `jaxsft.merging.merge.merge`.
    """
    base_path = _base(config)
    check_method(config, len(config.models), bool(base_path))
    mesh = make_mesh(config.mesh)
    models = [open_source(path, mesh) for path in config.models]
    base = open_source(base_path, mesh) if base_path else None
    sources, last = [*models, *([base] if base else [])], models[-1]
    for source in sources:
        _check_same(source, last, config.vocabulary)
    notes = _notes(sources, last)
    if config.vocabulary == "last":
        aligned = [source if _same_rows(source, last) else AlignedSource(source, last) for source in sources]
        for source in aligned:
            if isinstance(source, AlignedSource):
                notes.append(f"{source.path} has {source.known} of the {last.arch.vocab_size} rows of the vocabulary")
        models, base = aligned[: len(models)], aligned[-1] if base else None
    tied = all(source.arch.tied for source in sources)
    arch = dataclasses.replace(last.arch, tied=tied)
    dtype = source_dtype(last) if config.dtype == "auto" else jnp.dtype(config.dtype)
    if METHODS[config.method].statistics:
        check_data(config)
        _check_alike(config, sources)
    settings = Settings.of(config, len(models), base is not None, arch)
    tensors = weights.tensors(Decoder(arch))
    return Plan(config, models, base, arch, tensors, dtype, settings, mesh, notes)


def _base(config: MergeConfig) -> str:
    """The base that the config names, or the common start of runs and adapters where the method needs one."""
    if config.base or config.method not in METHODS or not METHODS[config.method].needs_base:
        return config.base
    tuned = lambda path: is_workdir(path) or is_adapter(resolve(path))
    if not config.models or not all(tuned(path) for path in config.models):
        return ""
    starts = {started_from(path, "config.base") for path in config.models}
    if len(starts) > 1:
        raise UserError(
            f"the models started from {len(starts)} folders ({', '.join(sorted(starts))}); set config.base."
        )
    return starts.pop()


def _check_same(source: Source, last: Source, vocabulary: str) -> None:
    """Refuses models that cannot be merged number by number."""
    for field in dataclasses.fields(Architecture):
        one, other = getattr(source.arch, field.name), getattr(last.arch, field.name)
        if field.name not in MAY_DIFFER and one != other:
            raise UserError(
                f"{source.path} and {last.path} are models of different shapes ({field.name}); merge models of one."
            )
    if vocabulary == "same" and not _same_rows(source, last):
        raise UserError(
            f"{source.path} and {last.path} have different tokenizers or numbers of rows ({source.arch.vocab_size}, "
            f"{last.arch.vocab_size}); merge models that share them, or set config.vocabulary to 'last'."
        )


def _check_alike(config: MergeConfig, sources: list[Source]) -> None:
    """Refuses models whose statistics would be of other tensors, or other rows, than those that are merged.

    Raises:
      UserError: for them.
    """
    last = sources[-1]
    for source in sources:
        if source.arch.tied != last.arch.tied or not _same_rows(source, last):
            raise UserError(
                f"{source.path} and {last.path} differ in their tokenizer or in tying, and the method "
                f"{config.method!r} measures each by itself; merge models alike, or take another method."
            )


def _same_rows(source: Source, last: Source) -> bool:
    same = source.tokenizer.fingerprint == last.tokenizer.fingerprint
    return same and source.arch.vocab_size == last.arch.vocab_size


def _notes(sources: list[Source], last: Source) -> list[str]:
    notes = []
    for source in sources[: sources.index(last)] + sources[sources.index(last) + 1 :]:
        if source.arch.tied != last.arch.tied:
            notes.append(f"{source.path} and {last.path} differ in tying; the result has a head of its own")
        if source.arch.max_positions != last.arch.max_positions:
            notes.append(f"{source.path} is made for {source.arch.max_positions} positions, the result says "
                         f"{last.arch.max_positions}")  # fmt: skip
        if source.tokenizer.hf.chat_template != last.tokenizer.hf.chat_template:
            notes.append(f"{source.path} has another chat template; the result has that of {last.path}")
    return notes


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
