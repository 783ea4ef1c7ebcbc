"""Runs diagnostics one after the other within a time budget."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from vilvm._runtime.progress import ProgressBar
from vilvm._runtime.threads import one_thread
from vilvm.diagnostics._coordinates import NAMELESS, Coordinates
from vilvm.diagnostics._time_budget import OutOfTimeError, Stop
from vilvm.lvm import ContractError, NotApplicable

__all__ = ["Check", "Session"]

_TABLE = "Posterior table"
_BEYOND = 0.1  # overrun at which a diagnostic is stopped, as a share of the budget
_FOR_TABLE = 0.03  # of the budget, for the table of the posterior


@dataclass(frozen=True)
class Check:
    """A diagnostic that may apply.

    Arguments:
        name: the diagnostic.
        run: called with the false-alarm rate of its test and the seconds that it may take.
        why_not: why it does not apply to this pair; empty if it applies.
        tested: whether it makes a test, and so needs a share of the false-alarm rate.
        about: as in ``Finding``.
        part: weight of its share of the remaining time.
    """

    name: str
    run: Callable[[float, float], Any]
    why_not: str = ""
    tested: bool = True
    about: Literal["posterior", "model"] = "posterior"
    part: float = 1.0


class Session:
    """Runs checks one after the other within a time budget.

    Arguments:
        index: index of the data in the full data set; None if results need no renaming.
        budget: seconds for all checks.
        end: time on the monotonic clock at which the budget is spent.
        names: of data and components.
    """

    def __init__(
        self,
        index: Tensor | None,
        budget: float,
        end: float,
        names: Coordinates = NAMELESS,
    ):
        self.index, self.budget, self.names = index, budget, names
        self.end = end - _FOR_TABLE * budget
        self.results: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self.unfinished: list[str] = []

    @property
    def cut(self) -> dict[str, str]:
        """What each diagnostic left out, by its name."""
        cuts = {
            name: getattr(result, "cut", "") for name, result in self.results.items()
        }
        return {name: what for name, what in cuts.items() if what}

    def run(self, checks: list[Check], false_alarm: float, progress: bool) -> None:
        """Runs the checks that apply, each with an equal share of the false-alarm rate."""
        rate = false_alarm / sum(check.tested and not check.why_not for check in checks)
        # The lock spans all checks; if another thread ran in between, the next check would fail.
        with one_thread(), ProgressBar("diagnosing", len(checks), show=progress) as bar:
            for i, check in enumerate(checks):
                bar.advance(0, check.name)
                if check.why_not:
                    self.skipped[check.name] = check.why_not
                else:
                    rest = sum(c.part for c in checks[i:] if not c.why_not)
                    self._run(check, rate, check.part / rest)
                bar.advance()

    def _run(self, check: Check, rate: float, share: float) -> None:
        """Runs a check in its share of the time that is left."""
        left = self.end - time.monotonic()
        if left <= 0:
            self._skip(check, self._spent)
            return
        seconds = left * share
        most = min(max(2 * seconds, self.budget / 4), left + _BEYOND * self.budget)
        try:
            with Stop(most):
                found = check.run(rate, seconds)
            assert (
                found.finding is not None
            )  # a finding that raises counts as a failure
            self.results[check.name] = self.names.apply(_renamed(found, self.index))
        except OutOfTimeError:
            self._skip(
                check,
                f"it was stopped after {most:.3g} s, beyond its share of the budget; raise it "
                "(budget=...).",
            )
        # A failed check must not stop the others, and counts as unfinished.
        except Exception as error:
            self._skip(
                check, _reason(error), applies=not isinstance(error, NotApplicable)
            )

    def tabulate[T](self, make: Callable[[float], T]) -> T | None:
        """The table that `make` draws in so many seconds; None, with the reason, if it cannot."""
        left = self.end + _FOR_TABLE * self.budget - time.monotonic()
        if left <= -_BEYOND * self.budget:
            self.skipped[_TABLE] = self._spent
            return None
        try:
            with one_thread(), Stop(left + _BEYOND * self.budget):
                return make(max(_FOR_TABLE * self.budget, 0.5 * left))
        except OutOfTimeError:
            self.skipped[_TABLE] = self._spent
        # A table that cannot be made must not cost the findings.
        except Exception as error:
            self.skipped[_TABLE] = _reason(error)
        return None

    @property
    def _spent(self) -> str:
        return f"the budget of {self.budget:g} s was spent; raise it (budget=...)."

    def _skip(self, check: Check, reason: str, applies: bool = True) -> None:
        self.skipped[check.name] = reason
        if applies and check.about == "posterior":
            self.unfinished.append(check.name)


def _reason(error: Exception) -> str:
    """The message of an error, without the shapes that Pyro appends."""
    message = " ".join(str(error).split("Trace Shapes:")[0].split())
    if isinstance(error, ContractError | ValueError):
        return message
    return f"{type(error).__name__}: {message}"


def _renamed(found: Any, index: Tensor | None) -> Any:
    """The result with data named by their index in the full data set."""
    if index is None or not hasattr(found, "index"):
        return found
    return replace(found, index=index[found.index])
