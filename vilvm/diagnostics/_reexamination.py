"""Re-examination of undecided data or components on fresh draws.

Among many data some look wrong by chance. Those in doubt are estimated again with more draws, all
of them new, and judged by these alone. The choice of the worst then does not bias the judgement.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

__all__ = ["FreshDraws", "Reexamination", "reexamine"]


class FreshDraws[T](NamedTuple):
    """How to estimate the chosen data again.

    Arguments:
        estimate: makes the estimate from so many new draws (or repeats).
        wanted: draws to make.
        affordable: draws for which there is time; may be infinite.
        least: fewer draws are not worth making.
    """

    estimate: Callable[[int], T]
    wanted: int
    affordable: float
    least: int = 1


class Reexamination[T](NamedTuple):
    """The estimates of the chosen data on fresh draws.

    Arguments:
        rows: the chosen data, in order, shape (M,).
        draws: the number of draws (or repeats) made; 0 if none were.
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
        most: at most so many data are chosen; None for all.
        fresh: how to estimate the data of given numbers, shape (M,).

    Returns:
        Reexamination, without draws if no data are undecided or if time is too short.
    """
    order = badness.argsort(descending=True)
    rows = order[: int(undecided.sum())][:most].sort().values
    if not len(rows):
        return Reexamination(rows, 0, None, False)
    plan = fresh(rows)
    draws = int(min(plan.wanted, plan.affordable))
    is_cut = draws < plan.wanted
    if draws < plan.least:
        return Reexamination(rows, 0, None, is_cut)
    return Reexamination(rows, draws, plan.estimate(draws), is_cut)
