"""Types of examples: integers by which an adapter treats them differently, from the tags of their records."""

from typing import TYPE_CHECKING

import numpy as np

from jaxsft.config import TypesConfig
from jaxsft.data.mixture import NAMES
from jaxsft.errors import UserError
from jaxsft.validation import did_you_mean

if TYPE_CHECKING:
    from jaxsft.data.dataset import Dataset

UNTYPED = -1
WHERE = "config.data.types"


def given(types: TypesConfig) -> bool:
    """Whether examples have types at all."""
    return bool(types.of) or types.other != UNTYPED


def of_names(types: TypesConfig, names: list[str]) -> np.ndarray:
    """int32, the type of the examples of each tag; -1 where they have none."""
    return np.array([types.of.get(name, types.other) for name in names], np.int32)


def type_ids(dataset: "Dataset") -> np.ndarray:
    """int32 [examples], the type of each, -1 for none; empty where examples have no types.

    Raises:
      UserError: for a tag that no example has, and a type below -1.
    """
    types = dataset.config.types
    if not given(types):
        return np.zeros(0, np.int32)
    names, ids = tags(dataset, types.by)
    for name, kind in {**types.of, "others": types.other}.items():
        if kind < UNTYPED:
            raise UserError(f"{WHERE} gives {name!r} the type {kind}; types are 0, 1, ..., and -1 is none.")
    if strange := [name for name in types.of if name not in names]:
        known = ", ".join(repr(name) for name in names)
        hint = did_you_mean(strange[0], names) or f"; it has {known}."
        raise UserError(f"{WHERE}.of names {strange[0]!r}, which is no {NAMES[types.by]} of the data{hint}")
    return of_names(types, names)[ids]


def tags(dataset: "Dataset", by: str) -> tuple[list[str], np.ndarray]:
    """The names of a tag, "task_type" or "source", and for each example the index of its own."""
    if by == "source":
        return dataset.sources, dataset.source_ids
    return dataset.task_types, dataset.task_type_ids


def counts(ids: np.ndarray) -> dict[str, int]:
    """Type -> examples, for the report."""
    found, number = np.unique(ids, return_counts=True)
    return {"untyped" if kind == UNTYPED else str(kind): int(n) for kind, n in zip(found, number)}
