"""Pictures in rows and columns, as one image: many axes would take seconds to draw.

Grey ones are dark on white.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vilvm.data.data import Data, as_data
from vilvm.plots.plain import PlainFigure

__all__ = ["grid", "picture_rows", "spread"]


def picture_rows(
    rows: Mapping[str, Tensor], image_shape: tuple[int, ...] | None, title: str = ""
) -> Figure:
    """Rows of pictures, each with its name at the left.

    Arguments:
        rows: by name, tensors of as many pictures each, shape (num_pictures, ...); values in [0,
            1].
        image_shape: (height, width) or (channels, height, width) of a picture; None for strips of
            one pixel's height.
        title: above.

    Raises:
        ValueError: no row, or rows of different lengths.
    """
    lengths = {len(row) for row in rows.values()}
    if len(lengths) != 1:
        raise ValueError(
            "picture_rows: rows must have as many pictures each; got "
            f"{ ({n: len(r) for n, r in rows.items()}) }."
        )
    pictures = torch.cat([row.detach().cpu().reshape(len(row), -1) for row in rows.values()])
    return grid(pictures, lengths.pop(), image_shape, list(rows), title)


def spread(data: Any, count: int) -> Data:
    """`count` data spread evenly over the set, so that a sorted one is not seen from one end only."""
    data = as_data(data)
    count = min(count, len(data))
    return data.subset(torch.linspace(0, len(data) - 1, count).long())


def grid(
    pictures: Tensor,
    columns: int,
    image_shape: tuple[int, ...] | None,
    rows: list[str] | None,
    title: str,
    gap: float = 0.08,
) -> Figure:
    """Pictures, row by row; those of no `image_shape` are strips of one pixel's height."""
    shape = image_shape or (1, int(pictures[0].numel()))
    height, width = shape[-2:]
    channels = shape[0] if len(shape) == 3 else 1
    if channels not in (1, 3):
        raise ValueError(
            f"A picture has 1 or 3 channels; the image_shape of these data is {shape}."
        )
    tiles = (
        pictures.detach()
        .cpu()
        .float()
        .reshape(-1, channels, height, width)
        .clamp(0, 1)
        .movedim(1, -1)
        .numpy()
    )
    tiles = 1 - tiles if channels == 1 else tiles
    down = math.ceil(len(tiles) / columns)
    space = max(1, round(gap * width)) if gap else 0
    sheet = np.ones(
        (down * (height + space) - space, columns * (width + space) - space, channels),
        dtype=np.float32,
    )
    for i, tile in enumerate(tiles):
        top, left = divmod(i, columns)
        sheet[top * (height + space) :, left * (width + space) :][:height, :width] = tile
    sheet = sheet.squeeze(-1) if channels == 1 else sheet
    inches = 9.0
    figure = PlainFigure(
        figsize=(inches, inches * sheet.shape[0] / sheet.shape[1] + 0.5), layout="constrained"
    )
    axes = figure.subplots()
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks(
        [(i + 0.5) * (height + space) for i in range(len(rows))] if rows else [], rows or []
    )
    axes.set_title(title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
