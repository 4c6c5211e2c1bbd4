"""The bijection between logical paths and the stacked parameter tree.

A logical path such as `layers.3.attn.q_proj.kernel` names what a user means; the arrays of a tree are stacked over
layers (`stacks.0.0.attn.q_proj.kernel`, row 3). Patterns, adapters, merging, export and metrics speak logical paths
only, and this is the one place that translates. All functions take trees that hold any subset of the model's arrays, or
other arrays at its paths (adapters: `layers.3.attn.q_proj.lora_a`).
"""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.errors import UserError
from jaxsft.models.architecture import Architecture
from jaxsft.validation import did_you_mean

Path = tuple[str, ...]


class Place(NamedTuple):
    """Where a logical path lives: the path in the tree, and the row of the stacked array (None if not stacked)."""

    path: Path
    row: int | None


def locate(arch: Architecture, logical: str) -> Place:
    """The place of a logical path.

    Raises:
      KeyError: for a layer that the model does not have.
    """
    parts = tuple(logical.split("."))
    if parts[0] != "layers":
        return Place(parts, None)
    layer = int(parts[1])
    for s, stack in enumerate(arch.stacks):
        row, position = divmod(layer - stack.first, len(stack.unit))
        if 0 <= row < stack.repeats:
            return Place(("stacks", str(s), str(position), *parts[2:]), row)
    raise KeyError(f"{logical}: the model has {arch.num_layers} layers")


def logical_paths(arch: Architecture, path: Sequence[str]) -> list[str]:
    """The logical paths of the array at `path` of a tree: one per row where it is stacked, else itself."""
    if path[0] != "stacks":
        return [".".join(path)]
    stack, position, rest = arch.stacks[int(path[1])], int(path[2]), ".".join(path[3:])
    return [f"layers.{stack.layer(position, row)}.{rest}" for row in range(stack.repeats)]


def flatten(arch: Architecture, tree: Any) -> dict[str, tuple[Any, int | None]]:
    """Logical path -> (leaf, row), row None where the leaf is not stacked; in the layers' order, nothing copied."""
    entries = []
    for path, leaf in leaves(tree):
        names = logical_paths(arch, path)
        rows = range(len(names)) if path[0] == "stacks" else [None]
        entries += [(name, (leaf, row)) for name, row in zip(names, rows)]
    return dict(sorted(entries, key=lambda entry: _order(entry[0])))


def unstack(arch: Architecture, tree: Any) -> dict[str, Any]:
    """Logical path -> array of that one layer."""
    return {name: leaf if row is None else leaf[row] for name, (leaf, row) in flatten(arch, tree).items()}


def stack(arch: Architecture, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `unstack`, as nested dicts.

    Raises:
      ValueError: if a stacked array lacks some of its layers.
    """
    rows: dict[Path, dict[int | None, Any]] = {}
    for name, array in arrays.items():
        path, row = locate(arch, name)
        rows.setdefault(path, {})[row] = array
    tree: dict[str, Any] = {}
    for path, found in rows.items():
        names = logical_paths(arch, path)
        if path[0] == "stacks" and len(found) != len(names):
            missing = [name for row, name in enumerate(names) if row not in found]
            raise ValueError(f"{missing[0]} and {len(missing) - 1} more are missing from their stack")
        array = found[None] if path[0] != "stacks" else jnp.stack([found[row] for row in range(len(names))])
        put(tree, path, array)
    return tree


def matches(patterns: Iterable[str], logical: str) -> bool:
    """Whether any pattern names the path or a module that it lies in.

    Patterns are those of `fnmatch`, over whole logical paths: `*` crosses dots. `layers.*.attn.*_proj` names the maps
    of all layers and with them their kernels, biases and adapters; `norm` is the final norm alone, `*norm*` all.
    """
    parts = logical.split(".")
    prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatch.fnmatchcase(prefix, pattern) for pattern in patterns for prefix in prefixes)


def select(arch: Architecture, tree: Any, patterns: Sequence[str], where: str = "patterns") -> Any:
    """Which rows of which arrays the patterns name.

    Args:
      arch: the model.
      tree: any tree of stacked arrays (or ShapeDtypeStructs).
      patterns: see `matches`.
      where: what holds the patterns, for the error.

    Returns:
      A tree like `tree`: a bool array [layers of the stack] for a stacked leaf, a bool for any other.

    Raises:
      UserError: for a pattern that names nothing, with the nearest module of the model.
    """
    names = {name for path, _ in leaves(tree) for name in logical_paths(arch, path)}
    for pattern in patterns:
        if not any(matches([pattern], name) for name in names):
            raise UserError(f"{where}: {pattern!r} names nothing in the model{_nearest(pattern, names)}.")

    def mask(path: Path, _: Any) -> Any:
        named = rows(arch, path, patterns)
        return named if path[0] == "stacks" else named.item()

    return map_leaves(mask, tree)


def leaves(tree: Any) -> Iterator[tuple[Path, Any]]:
    """(path, leaf) of a tree, the path as strings; tuples (logical axes) and quantised kernels are leaves."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_leaf):
        yield strings(path), leaf


def rows(arch: Architecture, path: Path, patterns: Sequence[str]) -> np.ndarray:
    """Which layers of the array or module at `path` of a tree the patterns name: bool [layers of the stack], or [1]."""
    return np.array([matches(patterns, name) for name in logical_paths(arch, path)])


def get(tree: Any, path: Path) -> Any:
    """The node at `path`, or None where the tree does not reach."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def put(tree: dict[str, Any], path: Path, node: Any) -> None:
    """Sets the node at `path` of nested dicts, making the dicts on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = node


def map_leaves(function: Callable[[Path, Any], Any], tree: Any) -> Any:
    """A tree of `function(path, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(strings(path), leaf), tree, is_leaf=_is_leaf)


def strings(path: Any) -> Path:
    """A key path of `jax.tree_util` as strings."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _order(name: str) -> tuple[bool, int]:
    parts = name.split(".")
    return (True, int(parts[1])) if parts[0] == "layers" else (False, 0)


def _nearest(pattern: str, names: set[str]) -> str:
    """A hint: the module nearest to the pattern, written with the pattern's own wildcard for the layer."""
    modules = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "layers" and (len(pattern.split(".")) < 2 or not pattern.split(".")[1].isdigit()):
            parts[1] = "*"
        modules |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    return did_you_mean(pattern, modules)


def _is_leaf(node: Any) -> bool:
    return type(node) is tuple or hasattr(node, "dequantize")  # a NamedTuple is a node
