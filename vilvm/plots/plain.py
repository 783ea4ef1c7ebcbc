"""Figures whose text is shown as it is written, for names come from the user: "$x" is no formula
here, and an unbalanced one would raise.
"""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text

__all__ = ["PlainFigure"]


class PlainFigure(Figure):
    """A Figure without formulas, but for the powers of ten that matplotlib writes on logarithmic
    axes.
    """

    def draw(self, renderer: Any) -> None:
        """Draws, as matplotlib does."""
        for text in self.findobj(Text):
            if isinstance(text, Text) and "\\mathdefault" not in text.get_text():
                text.set_parse_math(False)
        super().draw(renderer)
