"""Pictures in rows and columns. They are drawn as one image: many axes would take seconds.

Grey pictures are dark on white.
"""

import math

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from vilvm.plots._style import PlainFigure

__all__ = ["grid"]

_WIDTH = 9.0  # inches


def grid(
    pictures: Tensor,
    columns: int,
    image_shape: tuple[int, ...] | None,
    rows: list[str] | None,
    title: str,
    *,
    gap: float = 0.08,
) -> Figure:
    """Pictures, row by row; those without an `image_shape` are strips one pixel high.

    Arguments:
        pictures: shape (num_pictures, ...), values in [0, 1].
        columns: pictures in a row.
        image_shape: (height, width) or (channels, height, width).
        rows: names of the rows.
        title: above the pictures.
        gap: between pictures, as a fraction of their width.
    """
    tiles = _tiles(pictures, image_shape or (1, int(pictures[0].numel())))
    space = max(1, round(gap * tiles.shape[2])) if gap else 0
    sheet = _sheet(tiles, columns, space)
    figure = PlainFigure(
        figsize=(_WIDTH, _WIDTH * sheet.shape[0] / sheet.shape[1] + 0.5),
        layout="constrained",
    )
    axes = figure.subplots()
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    names = rows or []
    axes.set_xticks([])
    axes.set_yticks(
        [(i + 0.5) * (tiles.shape[1] + space) for i in range(len(names))], names
    )
    axes.set_title(title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _tiles(pictures: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """The pictures as an array of shape (num_pictures, height, width, channels)."""
    channels, height, width = (1, *shape)[-3:]
    if channels not in (1, 3):
        raise ValueError(
            f"A picture has 1 or 3 channels; the image_shape of these data is {shape}."
        )
    values = pictures.detach().cpu().float().reshape(-1, channels, height, width)
    tiles = values.clamp(0, 1).movedim(1, -1).numpy()
    if channels == 1:
        return 1 - tiles
    return tiles


def _sheet(tiles: np.ndarray, columns: int, space: int) -> np.ndarray:
    """One image of all tiles, `space` white pixels apart."""
    count, height, width, channels = tiles.shape
    rows = math.ceil(count / columns)
    size = (
        rows * (height + space) - space,
        columns * (width + space) - space,
        channels,
    )
    sheet = np.ones(size, dtype=np.float32)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        top, left = row * (height + space), column * (width + space)
        sheet[top : top + height, left : left + width] = tile
    if channels == 1:
        return sheet.squeeze(-1)
    return sheet
