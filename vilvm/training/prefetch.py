"""Batches read ahead of the steps that use them, by one thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

__all__ = ["Prefetched"]

_AHEAD = 4  # batches: enough to ride out a slow read


class Prefetched:
    """What `read` gives for each step, read beforehand as long as steps follow one another.

    What `read` raises is raised where its step is asked for. Memory is that of five batches.
    """

    def __init__(self, read: Callable[[int], Any]):
        self.read = read
        self._thread = ThreadPoolExecutor(1, "vilvm-prefetch")
        self._found: dict[int, Future[Any]] = {}

    def __call__(self, step: int) -> Any:
        """What was read for a step.

        The step may be asked for again, or one before it: it is then read anew.
        """
        wanted = range(step, step + _AHEAD + 1)
        for other in [s for s in self._found if s not in wanted]:
            self._found.pop(other).cancel()
        for ahead in wanted:
            if ahead not in self._found:
                self._found[ahead] = self._thread.submit(self.read, ahead)
        return self._found[step].result()

    def close(self) -> None:
        """Ends the thread, once it has read what it is at."""
        self._thread.shutdown(cancel_futures=True)
