"""Restricts models to one thread at a time.

All threads of a process share Pyro's handlers, its parameter store and torch's generators.
"""

import threading
from typing import Any

from vilvm._runtime.errors import BusyError

__all__ = ["one_thread"]

_LOCK = threading.RLock()


class one_thread:
    """A context for one thread at a time, which may enter it repeatedly.

    A second thread gets an error, since waiting could take hours. ``module_parameters``,
    ``seeded`` and ``evaluation_mode`` enter it.

    Raises:
        BusyError: another thread is in it.
    """

    def __enter__(self) -> None:
        if not _LOCK.acquire(blocking=False):
            raise BusyError(
                "Another thread of this process is running a pair (fit, evaluate, ...), and Pyro "
                "and torch's generators serve one thread at a time: wait until it has ended, or "
                "use another process."
            )

    def __exit__(self, *exc: Any) -> None:
        _LOCK.release()
