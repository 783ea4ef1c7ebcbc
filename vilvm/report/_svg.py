"""A matplotlib figure as inline SVG: its text is text, and its colours follow the page's.

The SVGs of a page share its identifiers, so those of each figure get a prefix. Scatter plots of
many points are rasterised: three thousand circles would be larger than the rest of the page.
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

from vilvm.plots._style import THEMED

__all__ = ["describe", "inline_svg"]

_MAX_CIRCLES, _DPI = 500, 192  # twice the pixels of a plain screen
_PX = 96 / 72  # CSS pixels a point


def inline_svg(figure: Figure, prefix: str) -> str:
    """The figure as an ``<svg>`` element that refers to no other file.

    Arguments:
        figure: any figure; it is not changed.
        prefix: of the identifiers, different for every figure of a page.
    """
    out = io.StringIO()
    # The default metadata contain URLs.
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vilvm"}),
        _rasterised(_large_scatters(figure)),
    ):
        figure.savefig(
            out,
            format="svg",
            dpi=_DPI,
            bbox_inches="tight",
            transparent=True,
            metadata=no_metadata,
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # The style element would apply to the whole page; page.css contains its rules.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", svg)
    svg = re.sub(r'(?<=[:"]) ?(#[0-9a-f]{6})(?=[;"])', _themed, svg)
    _, body = svg.split(">", 1)
    return f"{_opening_tag(svg, figure)}{body.strip()}"


def describe(figure: Figure) -> str:
    """A text alternative of the figure: titles, axis labels, legends and row names."""
    return " ".join(_describe_axes(axes) for axes in figure.axes)


def _opening_tag(svg: str, figure: Figure) -> str:
    size = re.search(r'viewBox="0 0 (\S+) (\S+)"', svg)
    assert size is not None
    width, height = (float(n) for n in size.groups())
    label = escape(describe(figure))
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width * _PX:.0f}" '
        f'height="{height * _PX:.0f}" '
        f'role="img" aria-label="{label}">'
    )


def _themed(found: re.Match[str]) -> str:
    """A colour of the figures as the page's variable; any other unchanged."""
    colour = found[1]
    if colour in THEMED:
        return f" var({THEMED[colour]}, {colour})"
    return found[0]


def _large_scatters(figure: Figure) -> list[Artist]:
    drawn = [artist for axes in figure.axes for artist in axes.collections]
    scatters = [artist for artist in drawn if isinstance(artist, PathCollection)]
    return [s for s in scatters if len(np.asarray(s.get_offsets())) > _MAX_CIRCLES]


@contextmanager
def _rasterised(artists: list[Artist]) -> Iterator[None]:
    before = [artist.get_rasterized() for artist in artists]
    for artist in artists:
        artist.set_rasterized(True)
    try:
        yield
    finally:
        for artist, was in zip(artists, before, strict=True):
            artist.set_rasterized(was)


def _describe_axes(axes: Axes) -> str:
    parts = [axes.get_title(), _axis_labels(axes), _row_names(axes), _legend(axes)]
    sentences = [part.strip().rstrip(".") for part in parts if part.strip()]
    return ". ".join([_kind(axes), *sentences]) + "."


def _kind(axes: Axes) -> str:
    return "Pictures" if axes.images and not axes.get_ylabel() else "Plot"


def _axis_labels(axes: Axes) -> str:
    across, up = axes.get_xlabel(), axes.get_ylabel()
    if up and across:
        return f"{up} against {across}"
    if up or across:
        return f"along the axis: {up or across}"
    return ""


def _row_names(axes: Axes) -> str:
    """The tick labels of pictures in rows or of bars by name."""
    if axes.get_ylabel() and not axes.images:
        return ""
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    names = [text for text in ticks if text and not _is_number(text)]
    if not names:
        return ""
    return "rows: " + ", ".join(names)


def _legend(axes: Axes) -> str:
    legend = axes.get_legend()
    if legend is None:
        return ""
    return "legend: " + ", ".join(text.get_text() for text in legend.get_texts())


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text.replace("−", "-"))))
    except ValueError:
        return False
