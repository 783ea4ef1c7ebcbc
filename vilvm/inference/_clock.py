"""The time of ``infer`` and what its rungs took of it."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from vilvm._runtime.progress import ProgressBar

__all__ = ["Clock", "Rung", "Shown"]


class Rung(NamedTuple):
    """A step of the ladder.

    Arguments:
        name: what was done.
        seconds: how long it took.
        gradients: points at which a gradient was computed, since the start.
        k: Pareto k̂ of the approximation; NaN if it has no weights.
        note: what was found.
    """

    name: str
    seconds: float
    gradients: int
    k: float
    note: str


class Clock:
    """The budget, and what each rung took of it.

    Arguments:
        budget: seconds.
        show: receives a line of progress.
    """

    def __init__(self, budget: float, show: Callable[[str], None] = lambda _: None):
        self.began = self._last = time.monotonic()
        self.budget, self.show = budget, show
        self.history: list[Rung] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds left, at least zero."""
        return max(0.0, self.budget - self.elapsed)

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return self.left == 0

    def within(self, share: float) -> Callable[[], bool]:
        """Whether a share of the time that is left now is over, as a function."""
        end = time.monotonic() + share * self.left
        return lambda: time.monotonic() > end

    def record(
        self, name: str, gradients: int, k: float = math.nan, note: str = ""
    ) -> None:
        """Adds a rung that ends now."""
        now = time.monotonic()
        self.history.append(Rung(name, now - self._last, gradients, k, note))
        self._last = now
        self.show(name if math.isnan(k) else f"{name}, k̂ {k:.2f}")


class Shown:
    """A context that gives the function which shows a rung and the time left.

    Arguments:
        budget: seconds.
        show: whether to show anything.
    """

    def __init__(self, budget: float, show: bool):
        self.bar = ProgressBar("infer", 1000, show=show)
        self.budget, self.began, self.done = budget, time.monotonic(), 0

    def __enter__(self) -> Callable[[str], None]:
        self.bar.__enter__()
        return self.show

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self.bar.advance(1000 - self.done)  # most runs end before their budget
        self.bar.__exit__(*error)

    def show(self, line: str) -> None:
        """Shows a line, and how much of the budget is gone."""
        elapsed = time.monotonic() - self.began
        done = min(1000, round(1000 * elapsed / self.budget))
        self.bar.advance(done - self.done, line)
        self.done = done
