"""Ctrl-C and SIGTERM, which end a run in order.

A handler runs between any two operations of Python, also within another handler, so it must take
no lock and call nothing that takes one. Here it counts, by one operation of C, and sets plain
attributes.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

__all__ = ["Interruption", "interruptible"]


class Interruption:
    """What signals ask of a run, and of those around it: the first to end in order, the second to
    leave at once.

    The second is passed to the handler that was there before: Ctrl-C raises KeyboardInterrupt, and
    SIGTERM ends the process. While a file is being written, it waits for that; a third does not.
    """

    def __init__(self) -> None:
        self.asked = False  # to end in order
        self._signals, self._writing, self._late = count(), False, 0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Takes over both signals, but for one whose handler is C's, which Python could not put
        back.
        """
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        self._before = {s: handler for s, handler in before.items() if handler is not None}
        for s in self._before:
            signal.signal(s, self._handle)

    def restore(self) -> None:
        """Puts the handlers back, but for those that were changed meanwhile."""
        for s, handler in self._before.items():
            if signal.getsignal(s) == self._handle:
                signal.signal(s, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self.asked = True
        before = next(self._signals)
        if before == 1 and self._writing:
            self._late = number
        elif before >= 1:
            self._leave(number)

    def _leave(self, number: int) -> None:
        self._late = 0
        self.restore()
        # as in the background of a shell; whoever asks twice means it
        if signal.getsignal(number) == signal.SIG_IGN:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A context that a second signal does not break into: what is written in it is whole."""
        self._writing = True
        try:
            yield
        finally:
            self._writing, late, self._late = False, self._late, 0
            if late:
                self._leave(late)


_ACTIVE: list[Interruption] = []  # that of the outermost run in the main thread, or none


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """What signals ask of the run within; a run within a callback of another shares that one's, so
    that a signal ends both.

    Elsewhere than in the main thread, signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Interruption()
        return
    if _ACTIVE:
        yield _ACTIVE[0]
        return
    found = Interruption()
    _ACTIVE.append(found)
    try:
        found.install()
        yield found
    finally:
        found.restore()
        _ACTIVE.clear()
