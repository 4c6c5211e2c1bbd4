"""The command that repeats a run, from its recorded config alone."""

import pprint
import shlex
from typing import Any

from jaxsft.config import TrainConfig
from jaxsft.report.groups import flatten
from jaxsft.report.read import Run
from jaxsft.validation import to_dict

CONFIG_NAME = "repeat.py"
DEFAULTS_LINE = "from jaxsft.config import TrainConfig as get_config"
CONFIG_FILE = """from jaxsft.config import TrainConfig, from_dict


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
        if nested or _is_map(name):
            rest[name] = value
        else:
            text = repr(tuple(value)) if isinstance(value, list) else str(value)
            flags.append(f"--config.{name}={text}")
    return flags, _folded(rest)


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


def _is_map(name: str) -> bool:
    return ".fields." in f".{name}."


def _folded(rest: dict[str, Any]) -> dict[str, Any]:
    """{"data.fields.a": "b"} -> {"data.fields": {"a": "b"}}."""
    folded: dict[str, Any] = {}
    for name, value in rest.items():
        start, inner, end = name.partition(".fields.")
        if inner:
            folded.setdefault(f"{start}.fields", {})[end] = value
        else:
            folded[name] = value
    return folded
