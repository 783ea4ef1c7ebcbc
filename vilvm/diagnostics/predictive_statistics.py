"""Statistics of whole data sets, which a predictive check compares.

The sample moments, extremes and zeros show a wrong family of the likelihood; correlations, or the
spread of row means, show a wrong dependence among the components of a datum.

The columns of a table (2 to 10 numbers a datum, or columns that have names) differ in meaning and
unit, so each has statistics of its own, and each pair of columns its correlation. The pixels of an
image are alike and many, and their statistics are of all entries together.

Reference: Posterior Predictive Assessment of Model Fitness via Realized Discrepancies, Gelman,
Meng and Stern, 1996.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CORRELATION", "Statistic", "default_statistics", "has_columns"]

Statistic = Callable[[Tensor], Tensor | float]

CORRELATION = "correlation"
_FEW = 10  # columns


def has_columns(x: Tensor, is_named: bool = False) -> bool:
    """Whether the statistics of data of shape (num_data, ...) are computed column by column.

    Arguments:
        x: data of one site.
        is_named: whether their columns have names.

    Returns:
        True for a table of 2 to 10 columns, or of more with names.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.predictive_statistics import has_columns
        >>> has_columns(torch.zeros(5, 9)), has_columns(torch.zeros(5, 784))
        (True, False)
    """
    return (
        x.dim() == 2
        and len(x) > 1
        and x.shape[1] > 1
        and (is_named or x.shape[1] <= _FEW)
    )


def default_statistics(x: Tensor, is_named: bool = False) -> dict[str, Statistic]:
    """Statistics that suit data of shape (num_data, ...).

    Mean, sd, minimum, maximum, skewness, kurtosis and the share of zeros; only the mean for zeros
    and ones, because it determines the rest. With 2 to 10 columns, or named ones, each is computed
    a column at a time, shape (C,), and so are the correlations of all pairs of columns. Otherwise
    they are of all entries; if a datum has several components, the sd over data of their mean, and
    the correlation of neighbouring ones, come with them.

    Arguments:
        x: data of one site, shape (num_data, ...).
        is_named: whether their columns have names, so that each of many is shown too.

    Returns:
        Functions of such data, by name.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.predictive_statistics import default_statistics
        >>> list(default_statistics(torch.ones(5)))
        ['mean']
        >>> default_statistics(torch.randn(5, 3))["skewness"](torch.randn(5, 3)).shape
        torch.Size([3])
    """
    by_column = has_columns(x, is_named)
    found: dict[str, Callable[[Tensor], Tensor]] = {"mean": _mean}
    if not bool(((x == 0) | (x == 1)).all()):
        found |= {
            "sd": _sd,
            "minimum": lambda x: x.amin(0),
            "maximum": lambda x: x.amax(0),
            "skewness": lambda x: _moment(x, 3),
            "kurtosis": lambda x: _moment(x, 4),
            "zeros": lambda x: (x == 0).double().mean(0),
        }
    if by_column:
        return {**found, CORRELATION: _correlations}
    whole: dict[str, Statistic] = {
        name: _of_all_entries(statistic) for name, statistic in found.items()
    }
    if x.dim() > 1 and x[0].numel() > 1 and len(x) > 1:
        whole |= {
            "sd of row means": lambda x: _sd(x.double().flatten(1).mean(1)),
            "neighbours": _neighbours,
        }
    return whole


def _of_all_entries(
    statistic: Callable[[Tensor], Tensor],
) -> Callable[[Tensor], Tensor]:
    return lambda x: statistic(x.flatten())


def _mean(x: Tensor) -> Tensor:
    return x.double().mean(0)


def _sd(x: Tensor) -> Tensor:
    return x.double().std(0, correction=0)


def _moment(x: Tensor, order: int) -> Tensor:
    """The central moment in units of the sd; 0 if all data are equal."""
    centred = x.double() - x.double().mean(0)
    sd = centred.square().mean(0).sqrt()
    return (centred / torch.where(sd > 0, sd, 1.0)).pow(order).mean(0)


def _correlations(x: Tensor) -> Tensor:
    """Correlation of each pair of columns, i < j, shape (C (C − 1) / 2,); 0 for a constant one."""
    centred = x.double() - x.double().mean(0)
    norm = centred.norm(dim=0)
    scaled = centred / torch.where(norm > 0, norm, 1.0)
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1)
    return (scaled.T @ scaled)[i, j]


def _neighbours(x: Tensor) -> Tensor:
    """Correlation of neighbouring components, all pairs jointly; 0 if all data are equal."""
    centred = x.double().flatten(1) - x.double().flatten(1).mean(0)
    square = centred.square().mean()
    return (centred[:, 1:] * centred[:, :-1]).mean() / torch.where(
        square > 0, square, 1.0
    )
