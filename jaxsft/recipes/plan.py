"""From a recipe's config to its stages, all checked before the first is begun."""

import copy
import dataclasses
import re
from typing import Any, NamedTuple

from etils import epath

from jaxsft.config import (
    DisperseConfig,
    MixConfig,
    PromptConfig,
    RecipeConfig,
    RewordConfig,
    SourceConfig,
    StageConfig,
    SynthesisConfig,
    TokensConfig,
)
from jaxsft.errors import UserError
from jaxsft.recipes.stages import KINDS
from jaxsft.validation import did_you_mean, validate

NAME = re.compile(r"[a-z0-9_]+")
PROMPTS = ("question", "preamble")  # fields whose braces stand for parts of a question, not for stages
PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Stage(NamedTuple):
    """A stage that is ready to be done.

    Attributes:
      name: its folder's.
      kind: of `jaxsft.recipes.stages.KINDS`.
      config: with changes, and with placeholders as they were written.
      inputs: names of the earlier stages that it reads, in alphabetical order.
      folder: where it is done.
    """

    name: str
    kind: str
    config: Any
    inputs: tuple[str, ...]
    folder: epath.Path

    def resolved(self) -> Any:
        """The config with the folders of earlier stages in place of the placeholders."""
        return _map_strings(
            copy.deepcopy(self.config), lambda text: PLACEHOLDER.sub(lambda m: str(self.folder.parent / m[1]), text)
        )


def plan(recipe: RecipeConfig, workdir: epath.PathLike) -> list[Stage]:
    """The stages of a recipe in a workdir, in their order.

    Raises:
      UserError: for names that are none or taken, configs of the wrong kind, changes of fields that do not exist, and
        placeholders that name no earlier stage.
    """
    if not recipe.stages:
        raise UserError("config.stages is empty; there is nothing to do.")
    stages: list[Stage] = []
    for i, stage in enumerate(recipe.stages):
        where, earlier = f"config.stages[{i}]", [other.name for other in stages]
        if not NAME.fullmatch(stage.name):
            raise UserError(f"{where}.name is {stage.name!r}; name it by small letters, digits and underscores.")
        if stage.name in earlier:
            raise UserError(f"{where}.name is {stage.name!r}, which an earlier stage is called; choose another.")
        config = _config(recipe, stage, where)
        inputs = _inputs(config, stage.name, earlier, [other.name for other in recipe.stages], where)
        stages.append(Stage(stage.name, stage.kind, config, inputs, epath.Path(workdir) / stage.name))
    return stages


def _config(recipe: RecipeConfig, stage: StageConfig, where: str) -> Any:
    """The stage's own config, or the shared one, with its changes; validated."""
    if stage.kind not in KINDS:
        raise UserError(f"{where}.kind is {stage.kind!r}{did_you_mean(stage.kind, KINDS) or '.'}")
    wanted = KINDS[stage.kind].config
    config = stage.config if stage.config is not None or stage.kind != "train" else recipe.train
    if not isinstance(config, wanted):
        raise UserError(
            f"{where}.config is a {type(config).__name__}; a stage of the kind {stage.kind!r} takes a "
            f"{wanted.__name__}."
        )
    config = copy.deepcopy(config)
    for path, value in stage.changes.items():
        _set(config, path, value, f"{where}.changes")
    if isinstance(config, DisperseConfig | SynthesisConfig):  # parts fit only the examples that they are of
        if not (config.data.path or config.data.sources):
            config.data = copy.deepcopy(recipe.train.data)
        config.model.path = config.model.path or recipe.train.model.path
    if isinstance(config, TokensConfig):
        config.model = config.model or recipe.train.model.path
    if isinstance(config, MixConfig):
        config.task = _records(config.task, recipe)
    if isinstance(config, RewordConfig):
        config.records = _records(config.records, recipe)
    validate(config, f"{where}.config")
    return config


def _records(asked: SourceConfig, recipe: RecipeConfig) -> SourceConfig:
    """What is asked for, or without a path the one source of the shared `train`."""
    sources = recipe.train.data.all_sources()
    return copy.deepcopy(sources[0]) if not asked.path and len(sources) == 1 else asked


def _set(config: Any, path: str, value: Any, where: str) -> None:
    """Sets the field of a dotted path."""
    node, *rest = config, *path.split(".")
    for depth, name in enumerate(rest):
        if not dataclasses.is_dataclass(node) or name not in node.__dataclass_fields__:
            known = getattr(node, "__dataclass_fields__", {})
            raise UserError(f"{where} names {path!r}, but {name!r} is no field{did_you_mean(name, known) or '.'}")
        if depth == len(rest) - 1:
            setattr(node, name, copy.deepcopy(value))
        node = getattr(node, name)


def _inputs(config: Any, name: str, earlier: list[str], all_names: list[str], where: str) -> tuple[str, ...]:
    """The stages that the placeholders name."""
    found: set[str] = set()
    _map_strings(copy.deepcopy(config), lambda text: found.update(PLACEHOLDER.findall(text)) or text)
    for other in sorted(found - set(earlier)):
        late = "which is not done before it" if other in all_names else "which is no stage"
        hint = did_you_mean(other, earlier) or f"; before {name!r} come: {', '.join(earlier) or 'none'}."
        raise UserError(f"{where}.config refers to {{{other}}}, {late}{hint}")
    return tuple(sorted(found))


def _map_strings(tree: Any, function: Any) -> Any:
    """Applies a function to every string of a config, in place where it can be."""
    if isinstance(tree, str):
        return function(tree)
    if isinstance(tree, list | tuple):
        return type(tree)(_map_strings(item, function) for item in tree)
    if isinstance(tree, dict):
        return {key: _map_strings(value, function) for key, value in tree.items()}
    if dataclasses.is_dataclass(tree):
        for field in dataclasses.fields(tree):
            if isinstance(tree, PromptConfig) and field.name in PROMPTS:
                continue
            setattr(tree, field.name, _map_strings(getattr(tree, field.name), function))
    return tree
