"""The posterior as a table: mean, standard deviation and 90 % interval of every scalar.

It shows the draws that a diagnosis judges, not corrected by their weights. Beside each scalar
stands what is known of its quality:

- k̂, the larger Pareto k̂ of the weights w and of w (z − m̂)², if the draws have weights;
- R̂ and the bulk effective sample size, if they are of chains.

A model may have thousands of latents. The table shows all latents that the data share, up to 40
scalars, and of all others the 10 that look worst; it says what it left out.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from vilvm._runtime.results import Result, Table, frame_of

__all__ = ["PosteriorTable", "Scalar"]

_BRIEF = 12  # rows in a terminal


class Scalar(NamedTuple):
    """One scalar of the posterior.

    Arguments:
        name: such as "theta[3]", or "theta[Choate]" with the user's coordinates.
        mean, sd: of the draws.
        low, high: quantiles of 5 % and 95 %.
        k: Pareto k̂; NaN if the draws have no weights.
        r_hat: R̂; NaN if they are not of chains.
        ess: bulk effective sample size of chains; NaN otherwise.
        datum: the name of its datum, if each has latents of its own.

    Examples:
        >>> from vilvm.diagnostics import Scalar
        >>> Scalar("mu", 4.4, 3.3, -1.0, 9.8).cells
        ('4.4', '3.3', '-1.0', '9.8')
    """

    name: str
    mean: float
    sd: float
    low: float
    high: float
    k: float = math.nan
    r_hat: float = math.nan
    ess: float = math.nan
    datum: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """Mean, sd and interval as text, with as many decimals as the sd deserves."""
        decimals = 3
        if self.sd > 0 and math.isfinite(self.sd):
            decimals = max(0, 1 - math.floor(math.log10(self.sd)))
        return tuple(_plain(x, decimals) for x in self[1:5])


@dataclass(frozen=True, repr=False)
class PosteriorTable(Result):
    """Scalars of the posterior, with the draws that they summarise.

    Arguments:
        rows: the scalars, in the order of the model.
        draws: their draws, float64, shape (S, number of rows).
        badness: how bad each looks, shape (number of rows,); above 1 a diagnostic is beyond its
            threshold.
        origin: where the draws come from.
        left_out: what the table does not show; empty if it shows all.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics import PosteriorTable, Scalar
        >>> rows = Scalar("mu", 4.4, 3.3, -1.0, 9.8), Scalar("tau", 3.0, 2.9, 0.6, 8.2)
        >>> badness = torch.tensor([0.4, 2.0])
        >>> table = PosteriorTable(rows, torch.randn(100, 2), badness, "draws of the guide")
        >>> table.rows[table.worst(1)[0]].name
        'tau'
        >>> print(table)
                mean    sd    5 %   95 %
         ────────────────────────────────
          mu     4.4   3.3   -1.0    9.8
          tau    3.0   2.9    0.6    8.2
    """

    rows: tuple[Scalar, ...]
    draws: Tensor = field(repr=False)
    badness: Tensor = field(repr=False)
    origin: str
    left_out: str = ""

    @property
    def summary(self) -> str:
        """How many draws there are, and whence."""
        return f"{len(self.draws):,} {self.origin}"

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the columns; those of which nothing is known are left out."""
        return ("", "mean", "sd", "5 %", "95 %", *(name for name, _ in self._quality))

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, a row a scalar."""
        quality = [column for _, column in self._quality]
        return [
            (row.name, *row.cells, *(column[i] for column in quality))
            for i, row in enumerate(self.rows)
        ]

    def worst(self, count: int = 4) -> list[int]:
        """Positions of the rows that look worst, the worst first.

        Arguments:
            count: the largest number of rows.
        """
        return self.badness.argsort(descending=True, stable=True)[:count].tolist()

    @property
    def _quality(self) -> list[tuple[str, list[str]]]:
        """k̂, R̂ and effective sample size, by their heads, where known."""
        columns = {
            "k̂": [f"{row.k:.2f}" for row in self.rows],
            "R̂": [f"{row.r_hat:.3f}" for row in self.rows],
            "ESS": [f"{row.ess:.0f}" for row in self.rows],
        }
        return [
            (name, ["–" if cell == "nan" else cell for cell in cells])
            for name, cells in columns.items()
            if any(cell != "nan" for cell in cells)
        ]

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row a scalar; its columns are the fields of ``Scalar``."""
        columns = zip(*self.rows, strict=True)
        return frame_of(dict(zip(Scalar._fields, map(list, columns), strict=True)))

    def _headline(self) -> Mapping[str, Any]:
        return {"rows": len(self.rows), "draws": len(self.draws)}

    def _contents(self) -> Iterator[str | Table]:
        shown = list(range(len(self.rows)))
        if len(shown) > _BRIEF:
            shown = sorted(self.worst(_BRIEF))
        cells = self.cells
        yield Table(self.head, [cells[i] for i in shown])
        if len(self.rows) > len(shown):
            yield f"{len(self.rows) - len(shown)} more rows: see to_frame()."
        if self.left_out:
            yield self.left_out


def _plain(x: float, decimals: int) -> str:
    """A number with so many decimals; four digits and an exponent if that is shorter."""
    text = f"{x:.{decimals}f}"
    return f"{x:.4g}" if len(text) > 10 else text
