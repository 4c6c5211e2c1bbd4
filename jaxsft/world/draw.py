"""Random draws that are the same on every Python version and machine."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A stream of draws named by its key.

    All are made of `random.Random.random()` seeded by a string, the one part of the standard library's generator whose
    values Python promises to keep.
    """

    def __init__(self, *key: object):
        self._random = random.Random("/".join(map(str, key))).random

    def below(self, n: int) -> int:
        """One of 0 .. n - 1."""
        return int(self._random() * n)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability

    def one(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def weighted(self, weights: dict[T, float]) -> T:
        """One of the keys, as often as its weight says."""
        left = self._random() * sum(weights.values())
        for item, weight in weights.items():
            left -= weight
            if left < 0:
                return item
        return item

    def some(self, items: Sequence[T], k: int) -> list[T]:
        """k different items, in random order."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(k)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items, in random order."""
        return self.some(items, len(items))
