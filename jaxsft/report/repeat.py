"""The command that repeats a run, from its recorded config alone."""

import dataclasses
import pprint
import shlex
import typing
from typing import Any

from jaxsft.config import TrainConfig
from jaxsft.report.groups import flatten
from jaxsft.report.read import Run
from jaxsft.validation import to_dict

CONFIG_NAME = "repeat.py"
DEFAULTS_LINE = "from jaxsft.config import TrainConfig as get_config"
CONFIG_FILE = """from jaxsft.config import TrainConfig
from jaxsft.validation import from_dict


def get_config() -> TrainConfig:
    return from_dict(
        TrainConfig,
        {},
    )"""


def overrides(config: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """What differs from TrainConfig's defaults.

    Returns:
      Flags, one for each field that a flag can set; and the fields that none can (mixtures and field maps), by name.
    """
    defaults, flags, rest = flatten(to_dict(TrainConfig())), [], {}
    for name, value in flatten(config).items():
        if value == defaults.get(name):
            continue
        nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))
        if path := _map_of(name):
            rest.setdefault(path, {}).update({} if name == path else {name.removeprefix(f"{path}."): value})
        elif nested:
            rest[name] = value
        else:
            text = repr(tuple(value)) if isinstance(value, list) else str(value)
            flags.append(f"--config.{name}={text}")
    return flags, rest


def command(run: Run) -> str:
    """The shell command, over the config file that `config_file` writes; one flag a line."""
    flags, _ = overrides(run.config)
    words = ["python scripts/train.py", f"--config={CONFIG_NAME}", f"--workdir={run.path}", *flags]
    return " \\\n    ".join([words[0], *(shlex.quote(word) for word in words[1:])])


def config_file(run: Run) -> str:
    """The config file that the command starts from: the defaults, and the fields that no flag can set."""
    _, rest = overrides(run.config)
    if not rest:
        return DEFAULTS_LINE
    tree: dict[str, Any] = {}
    for name, value in rest.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return CONFIG_FILE.format(pprint.pformat(tree, width=100, sort_dicts=False).replace("\n", "\n        "))


def _map_of(name: str) -> str:
    """The path of the field that holds a map, of which a flattened name is one entry; "" for all other fields."""
    return next((path for path in _maps(TrainConfig) if name == path or name.startswith(f"{path}.")), "")


def _maps(kind: type, prefix: str = "") -> list[str]:
    """Paths of the fields that hold maps, which flags cannot set."""
    found = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found += _maps(hint, f"{prefix}{name}.")
        elif typing.get_origin(hint) is dict:
            found.append(f"{prefix}{name}")
    return found
