"""The common style of all figures: colours, axes, legends, and text without formulas."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

__all__ = [
    "GREY",
    "INK",
    "SECOND",
    "THEMED",
    "PlainFigure",
    "hide_spines",
    "legend_above",
    "minus",
    "panel",
]

INK, SECOND, GREY = "#1f4e79", "#c2571a", "#8c959d"
# The variable of the page's style sheet that replaces each colour, in light and in dark mode.
THEMED = {INK: "--ink", SECOND: "--second", GREY: "--grey", "#000000": "--text"}


class PlainFigure(Figure):
    """A Figure that shows "$" in text literally: names come from the user and are not formulas.

    Only the powers of ten on logarithmic axes, which matplotlib writes, are formulas.
    """

    def draw(self, renderer: Any) -> None:
        """Draws as matplotlib does."""
        for text in self.findobj(Text):
            if isinstance(text, Text) and "\\mathdefault" not in text.get_text():
                text.set_parse_math(False)
        super().draw(renderer)


def panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one panel, with its size in inches."""
    figure = PlainFigure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    hide_spines(axes)
    return figure, axes


def hide_spines(axes: Axes) -> None:
    """Hides the top and right edges of the axes."""
    axes.spines[["top", "right"]].set_visible(False)


def legend_above(axes: Axes) -> None:
    """Puts the legend above the axes, where it covers no data."""
    axes.legend(
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        borderaxespad=0,
        columnspacing=1.4,
        fontsize=9,
        markerscale=1.6,
    )


def minus(text: str) -> str:
    """The text with minus signs in place of hyphens."""
    return text.replace("-", "−")
