"""The panels, colours and file of a figure."""

import io
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from vilvm._runtime.files import write_atomic
from vilvm.plots._style import GREY, INK, SECOND, hide_spines

__all__ = [
    "CLASSES",
    "GREY",
    "INK",
    "MARKERS",
    "SECOND",
    "panels",
    "save",
]

# Three classes differ in hue, lightness and marker.
CLASSES, MARKERS = (INK, SECOND, "#2a9d8f"), ("o", "^", "s")


def panels(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of `width` × `height` inches and its panels, row by row.

    `options` are those of ``Figure.subplots``.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False, **options)
    axes = list(grid.flat)
    for one in axes:
        hide_spines(one)
    return figure, axes


def save(figure: Figure, out: Path) -> None:
    """Writes a PNG of 128 colours, atomically; the palette more than halves the file."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    Image.open(drawn).convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    write_atomic(out, small.getvalue())
