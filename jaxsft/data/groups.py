"""How examples stand together: packing places groups of attention units, which hold examples, all in order."""

from typing import NamedTuple

import numpy as np


class Groups(NamedTuple):
    """The groups of an epoch.

    Attributes:
      members: int64 [N], examples, unit after unit; one may occur several times.
      units: int64 [units + 1], where each attention unit begins among the members.
      starts: int64 [groups + 1], where each group begins among the units.
    """

    members: np.ndarray
    units: np.ndarray
    starts: np.ndarray

    @classmethod
    def single(cls, members: np.ndarray) -> "Groups":
        """Every example a unit, every unit a group."""
        ends = np.arange(len(members) + 1)
        return cls(np.asarray(members, np.int64), ends, ends)

    @classmethod
    def of(cls, members: np.ndarray, sizes: np.ndarray, whole: bool = False) -> "Groups":
        """Groups of so many members each, which see each other if `whole`, and otherwise only themselves."""
        ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        members = np.asarray(members, np.int64)
        if whole:
            return cls(members, ends, np.arange(len(ends)))
        return cls(members, np.arange(len(members) + 1), ends)

    @property
    def count(self) -> int:
        """How many groups there are."""
        return len(self.starts) - 1

    def sizes(self) -> np.ndarray:
        """int64 [groups], examples of each group."""
        return np.diff(self.units[self.starts])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """int64 [groups], the sums over each group of numbers of examples, such as their lengths."""
        ends = np.concatenate([[0], np.cumsum(values[self.members], dtype=np.int64)])
        return np.diff(ends[self.units[self.starts]])

    def unit_sums(self, values: np.ndarray) -> np.ndarray:
        """int64 [units], likewise over each attention unit."""
        ends = np.concatenate([[0], np.cumsum(values[self.members], dtype=np.int64)])
        return np.diff(ends[self.units])

    def group(self, g: int) -> list[np.ndarray]:
        """The examples of each attention unit of group g."""
        return [self.members[self.units[u] : self.units[u + 1]] for u in range(self.starts[g], self.starts[g + 1])]
