"""A merge's weights and densities, tensor by tensor; and what of its config cannot be, found before any work."""

import dataclasses
from collections.abc import Sequence

from jaxsft.config import MergeConfig
from jaxsft.errors import UserError
from jaxsft.merging.dare import check_probabilities
from jaxsft.merging.factors import ADAPTER_METHODS
from jaxsft.merging.linear import check_divisible
from jaxsft.merging.registry import METHODS, normalizes
from jaxsft.merging.task_vectors import check_vote
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.decoder import Decoder
from jaxsft.validation import did_you_mean

GENERAL = {"method", "models", "rules", "vocabulary", "dtype", "mesh"}  # fields that every method reads
LAST = ("norm", "head")  # what comes behind the last layer


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is merged how.

    Attributes:
      config: the merge's.
      count: of models.
      layers: of each model.
    """

    config: MergeConfig
    count: int
    layers: int

    @staticmethod
    def of(config: MergeConfig, count: int, has_base: bool, arch: Architecture) -> "Settings":
        """Checked.

        Raises:
          UserError: for a method that is none, another number of models than it takes, fields that it does not read,
            numbers that do not fit the models, and rules that name nothing.
        """
        check_method(config, count, has_base)
        settings = Settings(config, count, arch.num_layers)
        settings._check(arch)
        return settings

    def at(self, logical: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Weights and densities of the models for one tensor."""
        weights, gradient, density = self.config.weights, self.config.gradient, self.config.density
        for rule in self.config.rules:
            if layout.matches(rule.paths, logical):
                density = rule.density or density
                if rule.weights or rule.gradient:
                    weights, gradient = rule.weights, rule.gradient
        if gradient:
            weights = _between(gradient, self._depth(logical))
        return weights or (1.0,) * self.count, density * self.count if len(density) == 1 else density

    def _depth(self, logical: str) -> float:
        """0 at the first layer and before it, 1 at the last and behind it."""
        head, *rest = logical.split(".")
        if head == "layers":
            return int(rest[0]) / max(self.layers - 1, 1)
        return float(head in LAST)

    def _check(self, arch: Architecture) -> None:
        config = self.config
        for holder, where in [(config, "config"), *((r, f"config.rules[{i}]") for i, r in enumerate(config.rules))]:
            self._check_numbers(holder, where)
        abstract = Decoder(arch).abstract_params()
        for i, rule in enumerate(config.rules):
            where = f"config.rules[{i}]"
            layout.select(arch, abstract, rule.paths, f"{where}.paths")  # refuses patterns that name nothing
            if not rule.paths or not (rule.weights or rule.gradient or rule.density):
                raise UserError(f"{where} has no {'numbers' if rule.paths else 'paths'}; give it some, or remove it.")
        try:
            self._check_tensors(abstract, arch)
        except ValueError as error:
            raise UserError(f"config.method {config.method!r}: {error}.") from error

    def _check_numbers(self, holder: object, where: str) -> None:
        reads = METHODS[self.config.method].reads
        if holder is self.config and not holder.density:
            raise UserError("config.density is empty; give one share for all models, or each its own.")
        for name in ("weights", "gradient", "density"):
            if getattr(holder, name) and name not in reads and holder is not self.config:
                raise UserError(f"{where}.{name} is set, but the method {self.config.method!r} does not read it.")
        if holder.weights and holder.gradient:
            raise UserError(f"{where} has both weights and a gradient; leave one of them empty.")
        for name, row in [("weights", holder.weights), *(("gradient", row) for row in holder.gradient)]:
            if (row or name == "gradient") and len(row) != self.count:
                raise UserError(f"{where}.{name} has {len(row)} numbers for {self.count} models; give each model one.")
        if len(holder.gradient) == 1:
            raise UserError(f"{where}.gradient has one row; give it two or more, or set weights.")
        if len(holder.density) > 1 and "weights" not in reads:
            raise UserError(f"{where}.density has {len(holder.density)} numbers, but the method takes one for all.")
        if holder.density and len(holder.density) not in (1, self.count):
            raise UserError(
                f"{where}.density has {len(holder.density)} numbers for {self.count} models; give one for all, or each "
                "its own."
            )
        for density in holder.density:
            if not 0 < density <= 1:
                raise UserError(f"{where}.density holds {density:g}; a share lies above 0 and is 1 at most.")

    def _check_tensors(self, abstract: object, arch: Architecture) -> None:
        """What the method would refuse on some tensor, hours into the work."""
        config, method = self.config, METHODS[self.config.method]
        for path, _ in layout.leaves(abstract):
            for logical in layout.logical_paths(arch, path):
                weights, density = self.at(logical)
                if normalizes(config):
                    check_divisible(weights)
                if normalizes(config) and method.votes:
                    check_vote(weights)
                if method.positive and min(weights) <= 0:
                    raise ValueError(f"weights must be positive, but {logical} has {min(weights):g}")
                if "density" in method.reads and "seed" in method.reads:
                    check_probabilities(density, config.epsilon if "epsilon" in method.reads else 0.0)


def check_method(config: MergeConfig, count: int, has_base: bool) -> None:
    """Refuses a config that its method cannot do with, whatever the models are.

    Raises:
      UserError: see `Settings.of`.
    """
    if config.method not in METHODS:
        near = did_you_mean(config.method, [*METHODS, *ADAPTER_METHODS]) or "."
        known = ", ".join([*METHODS, *ADAPTER_METHODS])
        raise UserError(f"config.method is {config.method!r}; the methods are: {known}{near}")
    method = METHODS[config.method]
    least, most = method.models
    if not max(least, 1) <= count <= most:
        wanted = f"{least:g}" if least == most else f"{least:g} or more"
        raise UserError(f"config.models has {count} models; the method {config.method!r} takes {wanted}.")
    if method.needs_base and not has_base:
        raise UserError(
            f"the method {config.method!r} needs what the models were tuned from; set config.base to a model."
        )
    if config.rescale == "density" and "rescale" in method.reads and "seed" not in method.reads:
        raise UserError(
            f"config.rescale is 'density', but the method {config.method!r} keeps entries by their size, with no "
            "probability to divide by; choose 'l1' or 'none'."
        )
    default = MergeConfig()
    for field in dataclasses.fields(MergeConfig):
        if field.name not in GENERAL | method.reads and getattr(config, field.name) != getattr(default, field.name):
            raise UserError(
                f"config.{field.name} is set, but the method {config.method!r} does not read it; leave it alone."
            )


def _between(rows: Sequence[Sequence[float]], depth: float) -> tuple[float, ...]:
    """The point at `depth` of the lines between rows at equal distances."""
    place = depth * (len(rows) - 1)
    first = min(int(place), len(rows) - 2)
    part = place - first
    return tuple((1 - part) * a + part * b for a, b in zip(rows[first], rows[first + 1]))
