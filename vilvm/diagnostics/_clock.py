"""The time that a diagnostic may take: what it chooses its sizes by, and where it is stopped."""

import math
import time
from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger

from vilvm._runtime.argument_checks import check_positive

__all__ = ["Clock", "OutOfTimeError", "Stop", "affordable_draws", "seconds_of"]


class OutOfTimeError(Exception):
    """A diagnostic was stopped, for its time was up."""


class Clock:
    """Seconds, from now on, by which a diagnostic chooses how much it looks at; endless if None.

    Example:
        >>> from vilvm.diagnostics._clock import Clock
        >>> Clock(None).over, Clock(0).over, Clock(None).affords(1.0)
        (False, True, inf)
    """

    def __init__(self, seconds: float | None):
        self.began, self.seconds = (
            time.monotonic(),
            math.inf
            if seconds is None
            else check_positive("budget", seconds, "number of seconds", zero=True),
        )

    @property
    def left(self) -> float:
        """Seconds left, at least zero."""
        return max(0.0, self.began + self.seconds - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether none is left."""
        return self.left == 0

    @property
    def limited(self) -> bool:
        """Whether there is an end."""
        return math.isfinite(self.seconds)

    def affords(self, each: float, share: float = 1.0) -> float:
        """How many things that take so many seconds each go into a share of what is left."""
        return self.left * share / max(each, 1e-9) if self.limited else math.inf


class Stop(Messenger):
    """Raises OutOfTimeError at the first sample statement of model or guide after so many seconds:
    no loop that runs them can outlast it.
    """

    def __init__(self, seconds: float):
        super().__init__()
        self.clock = Clock(seconds)

    def _pyro_sample(self, msg: Any) -> None:
        if self.clock.over:
            raise OutOfTimeError


def seconds_of(what: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.monotonic()
    what()
    return time.monotonic() - began


def affordable_draws(run: Callable[[int], Any], least: int, wanted: int, seconds: float) -> int:
    """How many of the draws that are wanted go into so many seconds, `least` at least; by timed
    runs, for a draw is seldom what a run costs.

    Few are drawn before, untimed, so that the way in which samples are run is known.
    """
    run(2)
    first = seconds_of(lambda: run(least))
    if first / least * wanted <= seconds or wanted <= 4 * least:
        return wanted if first / least * wanted <= seconds else least
    if 4 * first > seconds:
        return least
    each = max(seconds_of(lambda: run(4 * least)) - first, 0.0) / (3 * least)
    return int(min(wanted, max(least, (seconds - first) / max(each, 1e-9))))
