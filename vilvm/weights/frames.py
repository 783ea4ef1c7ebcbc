"""Latents of single data as a data frame."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

__all__ = ["latents_frame"]


def latents_frame(values: Mapping[str, Tensor], index: Any = None) -> pd.DataFrame:
    """A DataFrame with a row for each datum.

    Arguments:
        values: by name, shape (num_data, ...).
        index: the row labels, a pandas Index; by default the numbers from 0.

    Returns:
        The frame. The columns of a name x are "x[0]", "x[1]", …, by their index in its tensor, and
        "x" if it is a single number.

    Examples:
        >>> import torch
        >>> from vilvm.weights.frames import latents_frame
        >>> list(latents_frame({"z": torch.zeros(3, 2), "k": torch.zeros(3)}).columns)
        ['z[0]', 'z[1]', 'k']
    """
    columns: dict[str, Any] = {}
    for name, value in values.items():
        rows = value.detach().cpu().reshape(len(value), -1).numpy()
        for i, position in enumerate(np.ndindex(*value.shape[1:])):
            inner = ",".join(map(str, position))
            columns[f"{name}[{inner}]" if inner else name] = rows[:, i]
    return pd.DataFrame(columns, index=index)
