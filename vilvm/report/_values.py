"""Values as a reader expects them: four digits, a true minus sign, yes and no."""

import math
import re
from typing import Any

from vilvm.evaluation import Difference, Estimate

__all__ = ["as_text", "is_number", "typeset"]


def as_text(value: Any) -> str:
    """A value as text."""
    match value:
        case None | "":
            return "–"
        case True:
            return "yes"
        case False:
            return "no"
        case float():
            return f"{value:.4g}"
        case Estimate() | Difference():
            return _estimate(value)
        case list() | tuple():
            return ", ".join(map(as_text, value))
        case _:
            return str(value)


def _estimate(value: Estimate | Difference) -> str:
    if math.isnan(value.se):
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} ± {value.se:.2f}"


def typeset(text: str) -> str:
    """The text with a minus sign in place of the hyphen before a number.

    Hyphens within names and dates stay.
    """
    return re.sub(r"(?<![\w.)−-])-(?=\.?\d|inf\b)", "−", text)


def is_number(text: str) -> bool:
    """Whether a cell begins with a number, and so is aligned right."""
    return re.match(r"[−+]?(\.?\d|inf\b)", text) is not None
