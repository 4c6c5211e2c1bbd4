"""Writes docs/config.md, the reference of the config, from the dataclasses: python scripts/config_reference.py."""

import dataclasses
import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any

from jaxsft import cli, config, validation
from jaxsft.files import write_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"
HEAD = """# The config, field by field

Written by `python scripts/config_reference.py` from `jaxsft/config/`; edit the docstrings there.

A config is a Python file whose `get_config()` returns one of {roots}
(`ScoreConfig`, `DisperseConfig` and `ExportConfig` only as the `config` of a recipe's stage).
Every field can be set in that file, or on the command line by the path in the first column:

```
--config.optimizer.learning_rate=2e-5 --config.data.packing=False --config.data.template=chatml
--config.adapter.lora.targets="('layers.*.attn.*_proj', 'head')" --config.data.sources[0].weight=0.5
```

An entry of a list, such as `config.data.sources[0]`, must stand in the file before a flag can change it; a `dict` is
set in the file. An unknown field, a wrong type and a value out of range are refused before anything is loaded.
"""


def main() -> str:
    print(f"writing the fields of {', '.join(kind.__name__ for kind in roots())}")
    write_text(PAGE, reference())
    return f"{PAGE}: {sum(len(dataclasses.fields(kind)) for kind in places())} fields"


def reference() -> str:
    """The page."""
    head = HEAD.format(roots=", ".join(kind.__name__ for kind in roots()))
    return "\n".join([head, *(section(kind, paths) for kind, paths in places().items())])


def roots() -> list[type]:
    """The dataclasses of `jaxsft.config` that no other holds or extends, or that are configs by themselves too."""
    kinds = [kind for kind in vars(config).values() if inspect.isclass(kind) and dataclasses.is_dataclass(kind)]
    inner = {held for kind in kinds for _, held, _ in children(kind)} | {base for k in kinds for base in k.__mro__[1:]}
    inner -= {config.TrainConfig, config.MergeConfig}  # which a recipe and a search hold
    return sorted((kind for kind in kinds if kind not in inner), key=lambda kind: kind is not config.TrainConfig)


def places() -> dict[type, dict[str, list[str]]]:
    """Every dataclass in the order of the tree -> path -> names of the roots in which it stands there."""
    found: dict[type, dict[str, list[str]]] = {}

    def visit(kind: type, path: str, root: type) -> None:
        found.setdefault(kind, {}).setdefault(path, []).append(root.__name__)
        for name, held, many in children(kind):
            visit(held, f"{path}.{name}[i]" if many else f"{path}.{name}", root)

    for root in roots():
        visit(root, "config", root)
    return found


def children(kind: type) -> list[tuple[str, type, bool]]:
    """(field, dataclass, whether several of them) of the fields that hold dataclasses."""
    return [
        (name, inner, typing.get_origin(hint) in (list, tuple, dict))
        for name, hint in typing.get_type_hints(kind).items()
        for inner in (hint, *typing.get_args(hint))
        if dataclasses.is_dataclass(inner)
    ]


def section(kind: type, paths: dict[str, list[str]]) -> str:
    """A dataclass: what it is, where it stands, and the table of its fields."""
    where = "; ".join(f"`{path}` of {', '.join(names)}" for path, names in paths.items())
    place = "" if list(paths) == ["config"] else f"\n\nIt is {where}."
    rows = [row(kind, field, next(iter(paths))) for field in dataclasses.fields(kind)]
    table = "\n".join(["| field | type and default | meaning |", "|---|---|---|", *rows])
    return f"## {kind.__name__}\n\n{summary(kind)}{place}\n\n{table}\n"


def row(kind: type, field: dataclasses.Field, path: str) -> str:
    """A field's line."""
    inner = next((held for name, held, _ in children(kind) if name == field.name), None)
    meaning = meanings(kind).get(field.name, "")
    for other in places():
        meaning = re.sub(rf"`({other.__name__}[.\w]*)`", rf"[\1](#{other.__name__.lower()})", meaning)
    if inner and f"(#{inner.__name__.lower()})" not in meaning:
        meaning = f"{meaning or summary(inner)} See [{inner.__name__}](#{inner.__name__.lower()})."
    cells = f"`--{path}.{field.name}`", f"{type_of(kind, field)}, {default_of(field, inner)}", meaning
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def summary(kind: type) -> str:
    """A dataclass's docstring up to `Attributes:`."""
    return inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:")[0].strip()


def meanings(kind: type) -> dict[str, str]:
    """Field -> its entry under `Attributes:`, the class's own or that of the class it inherits the field from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")[2]
        for entry in re.split(r"^  (?=\w+: )", text, flags=re.MULTILINE)[1:]:
            name, _, meaning = entry.partition(": ")
            found[name] = " ".join(meaning.split())
    return found


def type_of(kind: type, field: dataclasses.Field) -> str:
    """The type, or the choices, and the range."""
    hint = typing.get_type_hints(kind)[field.name]
    if choices := validation.choices_of(kind, field.name, hint):
        return "one of " + ", ".join(map(literal, choices))
    written = re.sub(r"\b\w+\.(?=[A-Z])", "", str(hint) if typing.get_args(hint) else hint.__name__)
    written = written.replace(f"{config.__name__}.", "").replace("jaxsft.", "")
    return ", ".join([f"`{written}`", *limits(kind, field.name)])


def limits(kind: type, name: str) -> list[str]:
    """What `validate` asks of a number."""
    found = []
    if {name, f"{kind.__name__}.{name}"} & validation.POSITIVE:
        found.append("> 0")
    elif {name, f"{kind.__name__}.{name}"} & validation.NOT_NEGATIVE:
        found.append(">= 0")
    if name in validation.BELOW_ONE:
        found.append("< 1")
    if {name, f"{kind.__name__}.{name}"} & validation.AT_MOST_ONE:
        found.append("<= 1")
    return found


def default_of(field: dataclasses.Field, inner: type | None) -> str:
    """The default as Python writes it; that of a dataclass stands in its own section."""
    if field.default is not dataclasses.MISSING:
        return f"default {literal(field.default)}"
    value = field.default_factory()
    if inner and not isinstance(value, (list, tuple)):
        changed = [f for f in dataclasses.fields(value) if getattr(value, f.name) != getattr(inner(), f.name)]
        return "its defaults" + "".join(f", with `{f.name}` {literal(getattr(value, f.name))}" for f in changed)
    return f"default {literal(value)}"


def literal(value: Any) -> str:
    """A value as code, strings in double quotes."""
    if isinstance(value, tuple):
        inside = ", ".join(json.dumps(item, ensure_ascii=False) for item in value)
        return f"`({inside}{',' if len(value) == 1 else ''})`"
    return f"`{json.dumps(value, ensure_ascii=False)}`" if isinstance(value, str) else f"`{value!r}`"


if __name__ == "__main__":
    cli.main(main)
