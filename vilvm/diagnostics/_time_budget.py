"""The time budget of a diagnostic, which limits its sizes and stops it if it runs too long."""

import math
import time
from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger

from vilvm._runtime.argument_checks import check_positive

__all__ = ["OutOfTimeError", "Stop", "TimeBudget", "affordable_draws", "seconds_of"]


class OutOfTimeError(Exception):
    """A diagnostic exceeded its time."""


class TimeBudget:
    """A number of seconds from now on; unlimited if None.

    Examples:
        >>> from vilvm.diagnostics._time_budget import TimeBudget
        >>> TimeBudget(None).is_spent, TimeBudget(0).is_spent, TimeBudget(None).affords(1.0)
        (False, True, inf)
    """

    def __init__(self, seconds: float | None):
        self.began = time.monotonic()
        self.seconds = math.inf
        if seconds is not None:
            self.seconds = check_positive(
                "budget", seconds, "number of seconds", zero=True
            )

    @property
    def left(self) -> float:
        """Seconds left, at least zero."""
        return max(0.0, self.began + self.seconds - time.monotonic())

    @property
    def is_spent(self) -> bool:
        """Whether no time is left."""
        return self.left == 0

    @property
    def is_limited(self) -> bool:
        """Whether the budget is finite."""
        return math.isfinite(self.seconds)

    def affords(self, each: float, share: float = 1.0) -> float:
        """How many items of `each` seconds fit into a share of the time left."""
        if not self.is_limited:
            return math.inf
        return self.left * share / max(each, 1e-9)

    def pace(self, began: float, items: int) -> float:
        """Seconds per item, if `items` of them ran since `began` seconds were left."""
        if not self.is_limited:
            return 0.0
        return (began - self.left) / items


class Stop(Messenger):
    """Raises OutOfTimeError at the first sample statement after `seconds`.

    It stops every loop that runs the model or the guide.
    """

    def __init__(self, seconds: float):
        super().__init__()
        self.budget = TimeBudget(seconds)

    def _pyro_sample(self, msg: Any) -> None:
        if self.budget.is_spent:
            raise OutOfTimeError


def seconds_of(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    began = time.monotonic()
    function()
    return time.monotonic() - began


def affordable_draws(
    run: Callable[[int], Any], least: int, wanted: int, seconds: float
) -> int:
    """The number of draws that fit into `seconds`, between `least` and `wanted`.

    Timed runs of two sizes separate the time of a draw from the fixed time of a run. An untimed
    run comes first, because it decides how samples run.
    """
    run(2)
    first = seconds_of(lambda: run(least))
    if first / least * wanted <= seconds:
        return wanted
    if wanted <= 4 * least or 4 * first > seconds:
        return least
    each = max(seconds_of(lambda: run(4 * least)) - first, 0.0) / (3 * least)
    affordable = (seconds - first) / max(each, 1e-9)
    return int(min(wanted, max(least, affordable)))
