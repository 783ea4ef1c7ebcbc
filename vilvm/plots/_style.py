"""The common style of all figures: colours, axes, legends, and text without formulas."""

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

__all__ = [
    "GREY",
    "INK",
    "SECOND",
    "THEMED",
    "Figures",
    "PlainFigure",
    "hide_spines",
    "legend_above",
    "minus",
    "panel",
    "png",
]

INK, SECOND, GREY = "#1f4e79", "#c2571a", "#8c959d"
# The variable of the page's style sheet that replaces each colour, in light and in dark mode.
THEMED = {INK: "--ink", SECOND: "--second", GREY: "--grey", "#000000": "--text"}


class PlainFigure(Figure):
    """A Figure that shows "$" in text literally: names come from the user and are not formulas.

    Only the powers of ten on logarithmic axes, which matplotlib writes, are formulas. It shows in
    a notebook, where IPython draws figures of pyplot alone.
    """

    def _repr_png_(self) -> bytes:
        return png(self)

    def draw(self, renderer: Any) -> None:
        """Draws as matplotlib does."""
        for text in self.findobj(Text):
            if isinstance(text, Text) and "\\mathdefault" not in text.get_text():
                text.set_parse_math(False)
        super().draw(renderer)


def png(figure: Figure) -> bytes:
    """The figure as a PNG picture."""
    page = io.BytesIO()
    figure.savefig(page, format="png", bbox_inches="tight")
    return page.getvalue()


class Figures(dict[str, Figure]):
    """Figures by name, which show below each other in a notebook.

    Arguments:
        figures: by name.

    Examples:
        >>> from vilvm.plots import Figures, pareto_k
        >>> "<p>guide</p>" in Figures({"guide": pareto_k([0.2, 0.9])})._repr_html_()
        True
    """

    def __init__(self, figures: Mapping[str, Figure]):
        super().__init__(figures)

    def _repr_html_(self) -> str:
        parts = []
        for name, figure in self.items():
            picture = base64.b64encode(png(figure)).decode()
            source = f"data:image/png;base64,{picture}"
            parts.append(
                f'<p>{escape(name)}</p>\n<img src="{source}" alt="{escape(name)}">'
            )
        return "\n".join(['<div class="vilvm">', *parts, "</div>"])


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
