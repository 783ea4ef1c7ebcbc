"""Re-examination of undecided data or components on fresh draws.

Among many data some look wrong by chance. The undecided ones are estimated again on more and fresh
draws, and judged by these alone. So the choice of the worst does not bias the judgement.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

__all__ = ["FreshDraws", "Reexamination", "reexamine"]


class FreshDraws[T](NamedTuple):
    """How to estimate the chosen data again.

    Arguments:
        estimate: makes the estimate from a given number of new draws (or repeats).
        wanted: draws to make.
        affordable: draws for which there is time; may be infinite.
        least: the fewest draws worth making.
    """

    estimate: Callable[[int], T]
    wanted: int
    affordable: float
    least: int = 1


class Reexamination[T](NamedTuple):
    """The estimates of the chosen data on fresh draws.

    Arguments:
        rows: the chosen data, in order, shape (M,).
        draws: the number of draws (or repeats) made; 0 for none.
        estimate: the new estimates; None without draws.
        is_cut: whether there was no time for all draws.
    """

    rows: Tensor
    draws: int
    estimate: T | None
    is_cut: bool


def reexamine[T](
    undecided: Tensor,
    badness: Tensor,
    most: int | None,
    fresh: Callable[[Tensor], FreshDraws[T]],
) -> Reexamination[T]:
    """Estimates the worst of the undecided data again.

    Arguments:
        undecided: which data are in doubt, shape (N,).
        badness: larger is worse, shape (N,); the undecided have the largest values.
        most: largest number of data to choose; None for all.
        fresh: given the indices of the chosen data, shape (M,), how to estimate them.

    Returns:
        Reexamination, without draws if no data are undecided or if time is too short.
    """
    order = badness.argsort(descending=True)
    rows = order[: int(undecided.sum())][:most].sort().values
    if not len(rows):
        return Reexamination(rows, 0, None, False)
    new = fresh(rows)
    draws = int(min(new.wanted, new.affordable))
    is_cut = draws < new.wanted
    if draws < new.least:
        return Reexamination(rows, 0, None, is_cut)
    return Reexamination(rows, draws, new.estimate(draws), is_cut)
