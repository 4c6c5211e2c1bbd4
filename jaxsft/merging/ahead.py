"""The models' tensors in order, the next one's read while one is merged, where there is room for both."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import jax

from jaxsft.models.weights import Tensor

Load = Callable[[Tensor], list[jax.Array]]


class ReadAhead:
    """Reads one tensor ahead in a thread, and holds no more by it than the largest tensor takes while it is merged.

    With several processes it does not: reading may take all of them, and they have to start what they compute together
    in one order.

    Args:
      tensors: in the order in which they are taken.
      load: reads one of them from every source.
      sources: how many there are.
      arrays: so many arrays of a tensor's size exist at most while it is merged, those of its sources among them.
    """

    def __init__(self, tensors: Sequence[Tensor], load: Load, sources: int, arrays: int):
        self._tensors, self._load, self._sources, self._arrays = tensors, load, sources, arrays
        self._room = arrays * max(tensor.size for tensor in tensors)
        self._place = 0
        self._next: Future[list[jax.Array]] | None = None
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._thread.shutdown(cancel_futures=True)

    def take(self) -> list[jax.Array]:
        """The next tensor of every source; whatever reading it raises is raised here."""
        tensor = self._tensors[self._place]
        ready, self._next = self._next, None
        arrays = self._load(tensor) if ready is None else ready.result()
        self._place += 1
        if self._place < len(self._tensors) and jax.process_count() == 1:
            coming = self._tensors[self._place]
            if self._arrays * tensor.size + self._sources * coming.size <= self._room:
                self._next = self._thread.submit(self._load, coming)
        return arrays
