"""Statistics of whole data sets, which a predictive check compares.

The sample moments, extremes and zeros of all entries show a wrong family of the likelihood; the
spread of row means and the correlation of neighbours show a wrong dependence among the components
of a datum.

Reference: Posterior Predictive Assessment of Model Fitness via Realized Discrepancies, Gelman,
Meng and Stern, 1996.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Statistic", "default_statistics"]

Statistic = Callable[[Tensor], Tensor | float]


def default_statistics(x: Tensor) -> dict[str, Statistic]:
    """Statistics that suit data of shape (num_data, ...).

    Over all entries: mean, sd, minimum, maximum, skewness, kurtosis and the share of zeros; only
    the mean for zeros and ones, because it determines the rest. If a datum has several components,
    also the sd over data of their mean, and the correlation of neighbouring ones.

    Arguments:
        x: data of one site, shape (num_data, ...).

    Returns:
        Functions of such data, by name.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.predictive_statistics import default_statistics
        >>> list(default_statistics(torch.ones(5)))
        ['mean']
    """
    found: dict[str, Statistic] = {"mean": lambda x: x.double().mean()}
    if not bool(((x == 0) | (x == 1)).all()):
        found |= {
            "sd": lambda x: x.double().std(correction=0),
            "minimum": torch.min,
            "maximum": torch.max,
            "skewness": lambda x: _moment(x, 3),
            "kurtosis": lambda x: _moment(x, 4),
            "zeros": lambda x: (x == 0).double().mean(),
        }
    if x.dim() > 1 and x[0].numel() > 1 and len(x) > 1:
        found |= {
            "sd of row means": lambda x: (
                x.double().flatten(1).mean(1).std(correction=0)
            ),
            "neighbours": _neighbours,
        }
    return found


def _moment(x: Tensor, order: int) -> Tensor:
    """The central moment in units of the sd; 0 if all data are equal."""
    centred = x.double() - x.double().mean()
    sd = centred.square().mean().sqrt()
    return (centred / torch.where(sd > 0, sd, 1.0)).pow(order).mean()


def _neighbours(x: Tensor) -> Tensor:
    """Correlation of neighbouring components, all pairs jointly; 0 if all data are equal."""
    centred = x.double().flatten(1) - x.double().flatten(1).mean(0)
    square = centred.square().mean()
    return (centred[:, 1:] * centred[:, :-1]).mean() / torch.where(
        square > 0, square, 1.0
    )
