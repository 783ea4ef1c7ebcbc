"""Values as a reader expects them: four digits, a true minus sign, yes and no."""

import math
import re
from typing import Any

from vilvm.evaluation import Difference, Estimate

__all__ = ["is_number", "typeset", "words"]


def words(value: Any) -> str:
    """A value in words."""
    match value:
        case None | "":
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case Estimate() | Difference():
            return f"{value.mean:.2f}" + ("" if math.isnan(value.se) else f" ± {value.se:.2f}")
        case list() | tuple():
            return ", ".join(map(words, value))
        case _:
            return str(value)


def typeset(text: str) -> str:
    """With a minus sign where a hyphen stood before a number, and not where one stands within a
    name or a date.
    """
    return re.sub(r"(?<![\w.)−-])-(?=\.?\d|inf\b)", "−", text)


def is_number(text: str) -> bool:
    """Whether a cell begins with a number, so that it is set to the right."""
    return re.match(r"[−+]?(\.?\d|inf\b)", text) is not None
