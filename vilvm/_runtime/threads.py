"""One thread at a time: Pyro's handlers, its store of parameters and torch's generators are the
process's, and no thread's own.
"""

import threading
from typing import Any

from vilvm._runtime.errors import BusyError

__all__ = ["one_thread"]

_LOCK = threading.RLock()


class one_thread:
    """A context that one thread at a time may be in, as often as it likes; another is refused, for
    it might wait for hours.

    Whatever runs a pair, seeds the generators or puts a pair into evaluation mode is in it:
    ``module_parameters``, ``seeded``, ``evaluation_mode``.

    Raises:
        BusyError: another thread is in it.
    """

    def __enter__(self) -> None:
        if not _LOCK.acquire(blocking=False):
            raise BusyError(
                "Another thread of this process is running a pair (fit, evaluate, ...), and Pyro "
                "and torch's generators serve one thread "
                "at a time: wait until it has ended, or use another process."
            )

    def __exit__(self, *exc: Any) -> None:
        _LOCK.release()
