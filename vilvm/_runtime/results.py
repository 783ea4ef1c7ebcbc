"""Results as people read them: on a terminal, in a notebook, as a frame, as a figure.

A result describes itself once, by sentences and tables of text (``_contents``). ``print``, rich
and notebooks show these, so that their contents are the same. ``to_frame`` has the numbers in full
precision.
"""

import importlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions
from rich.table import Table as RichTable
from rich.text import Text
from torch import Tensor

__all__ = ["Result", "Table", "frame_of", "number", "plots", "shown_text", "table_of"]

_WIDTH, _GAP = 100, 3  # characters: of printed tables, between columns
_MOST_ROWS = 20  # of a frame that is shown as a table
# Notebooks would read "$" in names as formulas.
_OPENING = '<div class="vilvm tex2jax_ignore mathjax_ignore">'


class Table(NamedTuple):
    """A table of text, whose numbers are formatted.

    Arguments:
        heads: names of the columns; the first column names the rows.
        rows: each with as many cells as there are heads.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


class Result(ABC):
    """A result that prints, shows in a notebook, and becomes a frame.

    A subclass defines ``to_frame``. It shows its finding, if it has one, and its frame; one that
    shows more defines ``_contents``, and ``_headline``. A dataclass needs ``repr=False``, or its
    ``repr`` has all its fields.
    """

    @abstractmethod
    def to_frame(self) -> Any:
        """A pandas DataFrame."""

    def _headline(self) -> Mapping[str, Any]:
        """The few numbers and texts of the one-line ``repr``, by name."""
        finding = getattr(self, "finding", None)
        return {} if finding is None else {"severity": finding.severity.name}

    def _contents(self) -> Iterator[str | Table]:
        """Sentences and tables, from top to bottom."""
        finding = getattr(self, "finding", None)
        if finding is not None:
            yield str(finding)
        yield from table_of(self.to_frame())

    def __repr__(self) -> str:
        parts = [f"{name}={number(value)}" for name, value in self._headline().items()]
        return f"{type(self).__name__}({', '.join(parts)})"

    def __str__(self) -> str:
        return shown_text(self._contents())

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Any]:
        for part in self._contents():
            if isinstance(part, Table):
                yield from _rich_tables(part, options.max_width)
            else:
                yield Text(part)

    def _repr_html_(self) -> str:
        parts = [
            _html_table(part) if isinstance(part, Table) else f"<p>{escape(part)}</p>"
            for part in self._contents()
        ]
        return "\n".join([_OPENING, *parts, "</div>"])


def plots() -> Any:
    """The room of figures, imported when a result is plotted: results are defined below it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    return importlib.import_module("vilvm.plots")


# Frames
# --------------------------------------------------------------------------------------------


def frame_of(columns: Mapping[str, Any]) -> Any:
    """A pandas DataFrame of columns: tensors of shape (num_rows,), sequences, or one value each.

    Arguments:
        columns: by name.

    Examples:
        >>> import torch
        >>> from vilvm._runtime.results import frame_of
        >>> frame_of({"datum": range(2), "k": torch.tensor([0.5, 0.25]), "unit": "nats"}).shape
        (2, 3)
    """
    import pandas  # imported here because it takes a second

    return pandas.DataFrame(
        {
            name: values.detach().cpu().numpy()
            if isinstance(values, Tensor)
            else values
            for name, values in columns.items()
        }
    )


def table_of(frame: Any, most: int = _MOST_ROWS) -> Iterator[str | Table]:
    """The first rows of a frame as a table, and a sentence on the others.

    Arguments:
        frame: a pandas DataFrame; its index is left out.
        most: rows that are shown.
    """
    rows = [
        [number(value) for value in row] for row in frame.head(most).values.tolist()
    ]
    yield Table([str(name) for name in frame.columns], rows)
    if len(frame) > most:
        yield f"… and {len(frame) - most:,} more rows, see to_frame()."


def number(value: Any) -> str:
    """A value as text; a float has four significant digits.

    Examples:
        >>> from vilvm._runtime.results import number
        >>> number(2 / 3), number(3), number(None), number("mu")
        ('0.6667', '3', '–', 'mu')
    """
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


# Text and HTML
# --------------------------------------------------------------------------------------------


def shown_text(contents: Iterable[str | Table]) -> str:
    """Sentences and tables as plain text; a wide table is cut into several.

    Arguments:
        contents: from top to bottom.
    """
    lines: list[str] = []
    for part in contents:
        if isinstance(part, str):
            lines.append(part)
            continue
        page = io.StringIO()
        # in a notebook, rich would write to its output in place of the file
        console = Console(
            file=page, width=_WIDTH, color_system=None, force_jupyter=False
        )
        console.print(*_rich_tables(part, _WIDTH))
        text = [line.rstrip() for line in page.getvalue().splitlines()]
        lines += ["", *_without_blank_ends(text), ""]
    return "\n".join(_without_blank_ends(lines))


def _without_blank_ends(lines: list[str]) -> list[str]:
    filled = [i for i, line in enumerate(lines) if line]
    return lines[filled[0] : filled[-1] + 1] if filled else []


def _rich_tables(table: Table, width: int) -> Iterator[RichTable]:
    """A table for the terminal, as several if it is too wide; each has the first column."""
    columns = list(zip(table.heads, *table.rows, strict=True))
    sizes = [max(map(len, column)) + _GAP for column in columns]
    kept, used = [0], sizes[0]
    for i in range(1, len(columns)):
        if len(kept) > 1 and used + sizes[i] + _GAP > width:
            yield _rich_table([columns[k] for k in kept])
            kept, used = [0], sizes[0]
        kept.append(i)
        used += sizes[i]
    yield _rich_table([columns[k] for k in kept])


def _rich_table(columns: Sequence[Sequence[str]]) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1))
    # plain text, because markup interprets square brackets
    for i, (head, *_) in enumerate(columns):
        table.add_column(Text(head), justify="right" if i else "left", no_wrap=True)
    for line in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*map(Text, line))
    return table


def _html_table(table: Table) -> str:
    rows = "\n".join(_html_row(row, "td") for row in table.rows)
    head = _html_row(table.heads, "th")
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody></table>"


def _html_row(cells: Sequence[str], tag: str) -> str:
    shown = [
        f'<{tag} style="text-align:{"right" if i else "left"}">{escape(cell)}</{tag}>'
        for i, cell in enumerate(cells)
    ]
    return f"<tr>{''.join(shown)}</tr>"
