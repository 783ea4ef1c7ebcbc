"""The selection of data for a figure, and of their latent."""

from typing import Any

import torch
from torch import Tensor

from vilvm.data.data import Data, as_data

__all__ = ["spread", "vector_latent"]


def spread(data: Any, count: int) -> Data:
    """`count` data at equal distances in the set, so that sorted data are all represented."""
    data = as_data(data)
    count = min(count, len(data))
    return data.subset(torch.linspace(0, len(data) - 1, count).long())


def vector_latent(latents: dict[str, Tensor]) -> tuple[str, Tensor]:
    """Name and values of the only latent, shape (num_data, latent_dim).

    Raises:
        ValueError: there are several latents, or the latent is not a vector for each datum.
    """
    name, codes = next(iter(latents.items()))
    if len(latents) != 1 or codes.dim() != 2:
        shapes = {n: tuple(v.shape) for n, v in latents.items()}
        raise ValueError(
            "This figure needs a model of one latent, a vector for each datum; this one has "
            f"{shapes}."
        )
    return name, codes
