"""Ctrl-C and SIGTERM, which end a run after its current step.

A handler runs between any two operations of Python, also within another handler, so it must not
take a lock. Here it counts, by one operation of C, and sets plain attributes.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

__all__ = ["Interruption", "interruptible"]


class Interruption:
    """The signals to a run: the first ends it after its current step, the second at once.

    The second is passed to the previous handler: Ctrl-C raises KeyboardInterrupt, and SIGTERM ends
    the process. The second waits for a file that is being written; a third does not.
    """

    def __init__(self) -> None:
        self.asked = False  # whether the run should end after its current step
        self._signals = count()
        self._writing = False
        self._late = 0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Handles both signals, except one with a handler in C, which Python could not restore."""
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        self._before = {
            s: handler for s, handler in before.items() if handler is not None
        }
        for s in self._before:
            signal.signal(s, self._handle)

    def restore(self) -> None:
        """Restores the previous handlers, except where another one was installed since."""
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
        # A shell makes background jobs ignore SIGINT; a second signal ends the run nevertheless.
        if signal.getsignal(number) == signal.SIG_IGN:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A context that a second signal does not interrupt, so that files are complete."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
            late = self._late
            self._late = 0
            if late:
                self._leave(late)


_ACTIVE: list[Interruption] = []  # of the outermost run in the main thread


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """A context in which signals end the run, and every run in whose callback it is nested.

    Outside the main thread, signals are not handled.
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
