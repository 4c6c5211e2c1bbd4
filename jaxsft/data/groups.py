"""How examples stand together: packing places groups of examples, and never splits one."""

from typing import NamedTuple

import numpy as np


class Groups(NamedTuple):
    """The groups of an epoch.

    Attributes:
      members: int64 [N], examples, group after group; one may occur several times.
      starts: int64 [groups + 1], where each group begins among the members.
      windows: int64 [N, 2], the first token of each member that is used, and one past the last; None: all of them.
    """

    members: np.ndarray
    starts: np.ndarray
    windows: np.ndarray | None = None

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

    def tokens(self, lengths: np.ndarray) -> np.ndarray:
        """int64 [N], tokens of each member, from the lengths of all examples."""
        return lengths[self.members] if self.windows is None else self.windows[:, 1] - self.windows[:, 0]

    def sums(self, lengths: np.ndarray) -> np.ndarray:
        """int64 [groups], tokens of each group, from the lengths of all examples."""
        ends = np.concatenate([[0], np.cumsum(self.tokens(lengths), dtype=np.int64)])
        return np.diff(ends[self.starts])

    def group(self, g: int) -> list[tuple[int, slice]]:
        """The members of group g: the example, and which tokens of it."""
        places = range(self.starts[g], self.starts[g + 1])
        if self.windows is None:
            return [(int(self.members[i]), slice(None)) for i in places]
        return [(int(self.members[i]), slice(*self.windows[i].tolist())) for i in places]
