"""A matplotlib figure within an HTML page: inline SVG, whose text is text and whose colours follow
the page's.

Inline SVGs share the page's identifiers, so each gets a prefix of its own. Many points are drawn
as pixels, which an SVG embeds as a PNG, for three thousand circles would weigh more than the rest
of the page.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from vilvm.plots.palette import THEMED

__all__ = ["described", "embedded"]

_FEW, _DPI = 500, 192  # points; twice the pixels of a plain screen
_PX = 96 / 72  # CSS pixels a point


def embedded(figure: Figure, prefix: str) -> str:
    """The figure as an ``<svg>`` element that names no other file.

    Arguments:
        figure: any; it is left as it is.
        prefix: of the identifiers, different for every figure of a page.
    """
    out = io.StringIO()
    # no metadata, in which there are addresses
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vilvm"}),
        _as_pixels(_crowded(figure)),
    ):
        figure.savefig(
            out, format="svg", dpi=_DPI, bbox_inches="tight", transparent=True, metadata=nothing
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # it would hold for the whole page; page.css says the same
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", svg)
    svg = re.sub(r'(?<=[:"]) ?(#[0-9a-f]{6})(?=[;"])', _themed, svg)
    _, body = svg.split(">", 1)
    return f"{_opening(svg, figure)}{body.strip()}"


def described(figure: Figure) -> str:
    """The figure in words, for those who do not see it: titles, axes, and what the legends and
    rows say.
    """
    return " ".join(_axes_in_words(axes) for axes in figure.axes)


def _opening(svg: str, figure: Figure) -> str:
    size = re.search(r'viewBox="0 0 (\S+) (\S+)"', svg)
    assert size is not None
    width, height = (float(n) for n in size.groups())
    label = escape(described(figure))
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width * _PX:.0f}" '
        f'height="{height * _PX:.0f}" '
        f'role="img" aria-label="{label}">'
    )


def _themed(found: re.Match[str]) -> str:
    return f" var({THEMED[found[1]]}, {found[1]})" if found[1] in THEMED else found[0]


def _crowded(figure: Figure) -> list[Artist]:
    clouds = [
        cloud
        for axes in figure.axes
        for cloud in axes.collections
        if isinstance(cloud, PathCollection)
    ]
    return [cloud for cloud in clouds if len(cloud.get_offsets()) > _FEW]  # pyright: ignore[reportArgumentType]


@contextmanager
def _as_pixels(artists: list[Artist]) -> Iterator[None]:
    before = [artist.get_rasterized() for artist in artists]
    for artist in artists:
        artist.set_rasterized(True)
    try:
        yield
    finally:
        for artist, was in zip(artists, before, strict=True):
            artist.set_rasterized(was)


def _axes_in_words(axes: Axes) -> str:
    across, up, legend = axes.get_xlabel(), axes.get_ylabel(), axes.get_legend()
    ticks = [text.get_text() for text in axes.get_yticklabels()] if axes.images or not up else []
    rows = [text for text in ticks if text and not _is_number(text)]
    parts = [
        axes.get_title(),
        f"{up} against {across}"
        if up and across
        else f"along the axis: {up or across}"
        if up or across
        else "",
        "rows: " + ", ".join(rows) if rows else "",
        "legend: " + ", ".join(text.get_text() for text in legend.get_texts()) if legend else "",
    ]
    kind = "Pictures" if axes.images and not up else "Plot"
    return ". ".join([kind, *(part.strip().rstrip(".") for part in parts if part.strip())]) + "."


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text.replace("−", "-"))))
    except ValueError:
        return False
