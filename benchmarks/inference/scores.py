"""The error of draws against reference moments, and its grade.

Of all scalars with references, the largest error of a mean in posterior standard deviations (sd),
and the ratio of standard deviations that is farthest from 1 in its logarithm. Draws are

    good      if no mean is off by more than 0.1 sd and no sd by more than 10 %;
    usable    if none is off by more than 0.3 sd and 30 %;
    misses    otherwise, or if they are not finite.

A method that raises, or runs too long, ``fails``.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = ["FAILS", "GRADES", "Score", "grade", "score"]

FAILS = "fails"
GRADES = ("good", "usable", "misses", FAILS)  # best first
_LIMITS = {"good": 0.1, "usable": 0.3}


class Reference(Protocol):
    """Reference moments by scalar."""

    def mean(self, parameter: str, /) -> float: ...
    def sd(self, parameter: str, /) -> float: ...


class Score(NamedTuple):
    """The worst errors.

    Arguments:
        mean_error: error of the mean of `mean_scalar`, in posterior standard deviations.
        sd_ratio: standard deviation of `sd_scalar`, relative to the reference.
        grade: one of ``GRADES``, of all scalars.
    """

    mean_error: float
    mean_scalar: str
    sd_ratio: float
    sd_scalar: str
    grade: str


def score(scalars: Mapping[str, Tensor], reference: Reference) -> Score:
    """The worst errors of draws by scalar, shape (num_draws,) each."""
    errors, ratios = {}, {}
    for name, draws in scalars.items():
        draws, sd = draws.double(), reference.sd(name)
        errors[name] = (draws.mean().item() - reference.mean(name)) / sd
        ratios[name] = draws.std().item() / sd
    mean = max(errors, key=lambda name: _or_infinity(abs(errors[name])))
    sd = max(ratios, key=lambda name: _distance(ratios[name]))
    worst = max((grade(errors[n], ratios[n]) for n in errors), key=GRADES.index)
    return Score(errors[mean], mean, ratios[sd], sd, worst)


def grade(mean_error: float, sd_ratio: float) -> str:
    """The grade of one scalar: good, usable or misses."""
    for name, limit in _LIMITS.items():
        if abs(mean_error) <= limit and abs(sd_ratio - 1) <= limit:
            return name
    return "misses"


def _distance(ratio: float) -> float:
    return _or_infinity(abs(math.log(ratio)) if ratio > 0 else math.inf)


def _or_infinity(value: float) -> float:
    return math.inf if math.isnan(value) else value
