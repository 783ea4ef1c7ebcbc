"""Quantities of all data that are computed outside the plate over the data.

Outside that plate a model computes numbers f_1, …, f_N, one a datum, as the event of one tensor,
such as f = X β. In the plate they are a batch dimension. At many samples f has shape (*samples, 1,
N), since latents outside the plate have a dimension of size 1 in its place.
"""

from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

__all__ = ["in_data_plate", "observe_linear"]


def in_data_plate(f: Tensor) -> Tensor:
    """f with its last dimension in the place of the plate over the data.

    Arguments:
        f: one number a datum, shape (N,), or (*samples, 1, N).

    Returns:
        Shape (N,), or (*samples, N).

    Examples:
        >>> import torch
        >>> from vilvm.models.posteriordb.plates import in_data_plate
        >>> in_data_plate(torch.zeros(3)).shape, in_data_plate(torch.zeros(7, 1, 3)).shape
        (torch.Size([3]), torch.Size([7, 3]))
    """
    return f.reshape(*f.shape[:-2], f.shape[-1])


def observe_linear(
    data: tuple[Tensor, Tensor], beta: Tensor, sigma: Tensor, intercept: Any = 0.0
) -> None:
    """Observes y_n ~ N(a + x_n · β, σ) at the site "y".

    Arguments:
        data: covariates X, shape (N, K), and responses y, shape (N,).
        beta: coefficients β, shape (..., K).
        sigma: standard deviation σ.
        intercept: a.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.models.posteriordb.plates import observe_linear
        >>> data = torch.ones(2, 1), torch.ones(2)
        >>> trace = pyro.poutine.trace(observe_linear)
        >>> trace.get_trace(data, torch.ones(1), torch.tensor(1.0)).log_prob_sum()
        tensor(-1.8379)
    """
    x, y = data
    with pyro.plate("data", len(y)):
        mean = intercept + in_data_plate(beta @ x.T)
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)
