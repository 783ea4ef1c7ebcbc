"""Ctrl-C and SIGTERM, which end a run in order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["interruptible"]


@contextmanager
def interruptible(flag: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set the flag; a second one acts at once. Elsewhere than in the main thread, signals are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        flag.set()
        for s, handler in before.items():
            signal.signal(s, handler)

    try:
        for s in before:
            signal.signal(s, handle)
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
