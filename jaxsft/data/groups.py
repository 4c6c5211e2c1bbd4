"""How examples stand together: packing places groups of examples, and never splits one."""

from typing import NamedTuple

import numpy as np


class Groups(NamedTuple):
    """The groups of an epoch.

    Attributes:
      members: int64 [N], examples, group after group; one may occur several times.
      starts: int64 [groups + 1], where each group begins among the members.
    """

    members: np.ndarray
    starts: np.ndarray

    @classmethod
    def single(cls, members: np.ndarray) -> "Groups":
        """Every example by itself."""
        return cls(np.asarray(members, np.int64), np.arange(len(members) + 1))

    @classmethod
    def of(cls, members: np.ndarray, sizes: np.ndarray) -> "Groups":
        """Groups of so many members each."""
        return cls(np.asarray(members, np.int64), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    @property
    def count(self) -> int:
        """How many groups there are."""
        return len(self.starts) - 1

    def sizes(self) -> np.ndarray:
        """int64 [groups], examples of each group."""
        return np.diff(self.starts)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """int64 [groups], the sums over each group of numbers of examples, such as their lengths."""
        ends = np.concatenate([[0], np.cumsum(values[self.members], dtype=np.int64)])
        return np.diff(ends[self.starts])

    def group(self, g: int) -> np.ndarray:
        """The examples of group g."""
        return self.members[self.starts[g] : self.starts[g + 1]]
