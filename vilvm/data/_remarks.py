"""What a user should know about named columns before a model is trained on them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vilvm.data.data import Data

__all__ = ["remarks_on"]

_FEWEST = 10  # rows
_RATIO = 1000.0  # of standard deviations that one noise scale cannot serve


def remarks_on(data: Data) -> Iterator[str]:
    """Sentences on columns that are row numbers, or whose scales are far apart.

    Arguments:
        data: only a matrix of floats in memory, whose columns have names, gives any.
    """
    x, names = data.x, data.columns
    if isinstance(names, tuple) and isinstance(x, Tensor) and x.is_floating_point():
        if len(x) >= _FEWEST and tuple(x.shape[1:]) == (len(names),):
            yield from _of_row_numbers(x, names)
            yield from _of_scales(x, names)


def _of_row_numbers(x: Tensor, names: tuple[str, ...]) -> Iterator[str]:
    steps = ((x[1:] - x[:-1] == 1) & (x[1:] == x[1:].round())).all(0)
    for i in steps.nonzero().flatten().tolist():
        yield f"column {names[i]!r} numbers the rows, and is trained on as the others are."


def _of_scales(x: Tensor, names: tuple[str, ...]) -> Iterator[str]:
    sd = x.double().std(0)
    counts = bool((x == x.round()).all())  # have the scales that they have
    if counts or not bool((sd > 0).any()):
        return
    least, most = torch.where(sd > 0, sd, torch.inf).argmin(), sd.argmax()
    if float(sd[most]) > _RATIO * float(sd[least]):
        yield (
            f"the standard deviations of the columns reach from {float(sd[least]):.3g} "
            f"({names[int(least)]!r}) to {float(sd[most]):.3g} ({names[int(most)]!r}); if one "
            "noise scale serves all of them, standardise them first."
        )
