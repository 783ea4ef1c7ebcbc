"""Batches that one thread reads ahead of the steps that use them."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

__all__ = ["Prefetched"]

_AHEAD = 4  # batches; enough to cover a slow read


class Prefetched:
    """Reads the batches of the next steps ahead, up to five at a time.

    An error of `read` is raised when its step is requested.

    Arguments:
        read: returns the batch of a step.
    """

    def __init__(self, read: Callable[[int], Any]):
        self.read = read
        self._thread = ThreadPoolExecutor(1, "vilvm-prefetch")
        self._found: dict[int, Future[Any]] = {}

    def __call__(self, step: int) -> Any:
        """The batch of a step; one that was discarded, or an earlier one, is read again."""
        wanted = range(step, step + _AHEAD + 1)
        for other in [s for s in self._found if s not in wanted]:
            self._found.pop(other).cancel()
        for ahead in wanted:
            if ahead not in self._found:
                self._found[ahead] = self._thread.submit(self.read, ahead)
        return self._found[step].result()

    def close(self) -> None:
        """Ends the thread after its current read."""
        self._thread.shutdown(cancel_futures=True)
