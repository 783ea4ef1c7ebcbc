"""The colours of figures, each with the variable of the page's style sheet that takes its place
there, in light and in dark.
"""

__all__ = ["GREY", "INK", "SECOND", "THEMED"]

INK, SECOND, GREY = "#1f4e79", "#c2571a", "#8c959d"

THEMED = {INK: "--ink", SECOND: "--second", GREY: "--grey", "#000000": "--text"}
