"""Quantities of all data that are computed outside the plate over the data.

Outside that plate a model computes numbers f_1, …, f_N, one a datum, as the event of one tensor,
such as f = X β. In the plate they are a batch dimension. At many samples f has shape (*samples, 1,
N), since latents outside the plate have a dimension of size 1 in its place.
"""

from torch import Tensor

__all__ = ["in_data_plate"]


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
