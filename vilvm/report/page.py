"""The page of a run or of a ledger: one HTML file that holds all it shows, opens without a
network, and is read on screen, phone and paper.

What matters comes first: the main numbers, then the findings, the gravest before the others, then
tables, curves and pictures, and last what it takes to have it all again. Nothing is loaded and
nothing is run: the page's own policy forbids both.
"""

import importlib.resources
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from vilvm._runtime.files import write_atomic
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.evaluation import Ledger
from vilvm.evaluation.ledger_tables import filled
from vilvm.plots.figures import elbo_curves
from vilvm.report.embed import described, embedded
from vilvm.report.provenance import environment
from vilvm.report.words import is_number, typeset, words

__all__ = ["Page", "Table"]

_TERMS = {
    "IWAE": "importance-weighted bound on log p(x), higher is better",
    "ELBO": "evidence lower bound, higher is better",
    "exact": "log p(x) in closed form",
    "rate": "KL(q(z | x) ‖ p(z))",
    "distortion": "−E log p(x | z), lower is better",
    "ESS": "effective sample size of the weights",
    "SSE": "squared error of reconstructions",
    "two-sample": "accuracy of a classifier between draws and data, 0.5 is best",
    "Fréchet": "distance between draws and data, lower is better",
}
_ABREAST = 5  # numbers of the summary
# inches, width over height; figures beyond both scroll on a phone, where their text would be too
# small
_WIDE, _FLAT = 6.5, 1.5


class Table(NamedTuple):
    """Rows of cells under a head. Cells are put into words as the settings are; the first of a row
    names it.

    Arguments:
        head: of every column.
        rows: of as many cells each.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Page:
    """A page; every part but the title may be left out.

    Arguments:
        title: above.
        lead: one sentence: what was done, on which data.
        summary: the main numbers, by name: words, numbers, or estimates with their standard
            errors.
        findings: shown the gravest first.
        finding_figures: plots, by the name of their finding.
        ledger: its groups become tables, each under its protocol.
        tables: more of them, by caption.
        history: of ``fit``; drawn as curves.
        figures: pictures, by caption.
        settings: of the run, by name.
        command: that makes it all again; see ``vilvm.report.command``.
        environment: what it was made with; by default versions, commit and date of now.
            ``vilvm.report.environment`` adds device and seed.

    Raises:
        ValueError: a figure of a finding that is not there.

    Example:
        >>> from vilvm.report import Page
        >>> html = Page("PPCA", summary={"ELBO (nats per datum)": -3.25}).html()
        >>> "−3.25" in html, "<script" in html
        (True, False)
    """

    title: str
    lead: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    finding_figures: Mapping[str, Figure] = field(default_factory=dict)
    ledger: Ledger | None = None
    tables: Mapping[str, Table] = field(default_factory=dict)
    history: Any = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    environment: Mapping[str, str] = field(default_factory=environment)

    def __post_init__(self) -> None:
        names = [finding.name for finding in self.findings]
        astray = sorted(set(self.finding_figures) - set(names))
        if astray:
            raise ValueError(
                f"Page: there is a figure for {astray[0]!r}, and the findings are {names}."
            )

    def html(self) -> str:
        """The page, as one document."""
        numbers = count(1)
        sections = {
            "Findings": _findings(self.findings, self.finding_figures, numbers),
            "Results": _ledger(self.ledger) + _tables(self.tables),
            "Training": _figures({"": elbo_curves(self.history)}, numbers)
            if self.history is not None and len(self.history)
            else "",
            "Pictures": _figures(self.figures, numbers),
            "Settings": _pairs(self.settings, "Settings"),
            "How to reproduce": _reproduce(self.command, self.environment),
        }
        return _document(self, {name: body for name, body in sections.items() if body})

    def write(self, path: Path | str) -> None:
        """Writes the page, whole or not at all."""
        write_atomic(Path(path), self.html())


def _document(page: Page, sections: Mapping[str, str]) -> str:
    style = (
        importlib.resources.files("vilvm.report").joinpath("page.css").read_text(encoding="utf-8")
    )
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    links = "".join(f'<li><a href="#{anchors[name]}">{name}</a></li>' for name in sections)
    bodies = "\n".join(
        f'<section aria-labelledby="{anchors[name]}">\n<h2 '
        f'id="{anchors[name]}">{name}</h2>\n{body}\n</section>'
        for name, body in sections.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(page.title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(page.title)}</h1>
{f'<p class="lead">{escape(page.lead)}</p>' if page.lead else ""}
{f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(sections) > 2 else ""}
</header>
<main>
{_summary(page.summary)}
{bodies}
</main>
<footer class="quiet">{escape(" · ".join(_signature(page.environment)))}</footer>
</body>
</html>
"""


def _signature(made_with: Mapping[str, str]) -> Iterator[str]:
    yield f"Made by vilvm {made_with.get('vilvm', '')}".strip()
    if "date" in made_with:
        yield made_with["date"]


def _summary(numbers: Mapping[str, Any]) -> str:
    if not numbers:
        return ""
    items = []
    for name, value in numbers.items():
        said = typeset(words(value))
        css = "" if is_number(said) else ' class="words"'
        items.append(f"<div><dt>{escape(name)}</dt><dd{css}>{_number(said)}</dd></div>")
    columns = math.ceil(len(items) / math.ceil(len(items) / _ABREAST))  # rows as even as can be
    return f'<dl class="summary" style="--columns: {columns}">{"".join(items)}</dl>'


def _number(text: str) -> str:
    """With its standard error, if it has one, in a quieter voice."""
    number, plus_minus, error = text.partition(" ± ")
    return escape(number) + (f' <span class="se">± {escape(error)}</span>' if plus_minus else "")


def _findings(
    findings: Sequence[Finding], figures: Mapping[str, Figure], numbers: Iterator[int]
) -> str:
    if not findings:
        return ""
    counts = Counter(finding.severity for finding in findings)
    said = ", ".join(
        f"{counts[severity]} {severity.name}"
        for severity in sorted(Severity, reverse=True)
        if counts[severity]
    )
    ordered = sorted(findings, key=lambda finding: -finding.severity)
    shown = (_finding(finding, figures.get(finding.name), numbers) for finding in ordered)
    return f'<p class="quiet">By severity: {said}.</p>\n' + "\n".join(shown)


def _finding(finding: Finding, figure: Figure | None, numbers: Iterator[int]) -> str:
    severity = finding.severity.name
    said = [
        f'<header><span class="severity">{severity}</span><h3>{escape(finding.name)}</h3></header>',
        f"<p>{escape(finding.verdict)}</p>",
        f"<p><strong>What to try:</strong> {escape(finding.advice)}</p>" if finding.advice else "",
        f'<p class="quiet">Threshold: {escape(finding.source)}</p>' if finding.source else "",
    ]
    plot = _figures({"": figure}, numbers) if figure is not None else ""
    return (
        f'<article class="finding {severity.lower()}"><div>{"".join(said)}</div>{plot}</article>'
    )


def _ledger(ledger: Ledger | None) -> str:
    if ledger is None or not len(ledger):
        return ""
    groups = ledger.groups()
    tables = {str(protocol): filled(rows) for protocol, rows in groups.items()}
    heads = [name for head, _ in tables.values() for name in head]
    terms = [
        f"{term}: {meaning}"
        for term, meaning in _TERMS.items()
        if any(name.startswith(term) for name in heads)
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in ledger.notes)
    return "\n".join(
        [
            _tables({name: Table(*cells) for name, cells in tables.items()}, "ranked"),
            '<p class="quiet">Rows of different tables cannot be ranked against each other: their '
            "protocols differ.</p>"
            if len(groups) > 1
            else "",
            f'<p class="quiet">{escape("; ".join(terms))}. ± is one standard error.</p>'
            if terms
            else "",
            f'<ul class="notes">{notes}</ul>' if notes else "",
        ]
    )


def _tables(tables: Mapping[str, Table], kind: str = "plain") -> str:
    return "\n".join(_table(name, table, kind) for name, table in tables.items())


def _table(caption: str, table: Table, kind: str) -> str:
    rows = [[typeset(words(cell)) for cell in row] for row in table.rows]
    for row in rows:
        if len(row) != len(table.head):
            raise ValueError(
                f"Page: a row of the table {caption!r} has {len(row)} cells under a head of "
                f"{len(table.head)}: {row}."
            )
    numeric = [
        i > 0 and any(map(is_number, column)) for i, column in enumerate(zip(*rows, strict=True))
    ] or [False] * len(table.head)
    css = [' class="number"' if n else "" for n in numeric]
    head = "".join(
        f'<th scope="col"{c}>{escape(name)}</th>' for name, c in zip(table.head, css, strict=True)
    )
    body = "\n".join(f"<tr>{_row(row, css)}</tr>" for row in rows)
    shown = (
        f'<table class="{kind}" '
        f'aria-label="{escape(caption)}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    )
    return f'<figure class="table"><figcaption>{escape(caption)}</figcaption>{_scrolled(shown, caption)}</figure>'


def _row(cells: Sequence[str], css: Sequence[str]) -> str:
    first, *others = [_number(cell) for cell in cells]
    return f'<th scope="row">{first}</th>' + "".join(
        f"<td{c}>{cell}</td>" for cell, c in zip(others, css[1:], strict=True)
    )


def _pairs(pairs: Mapping[str, Any], label: str) -> str:
    if not pairs:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th><td>{escape(words(value))}</td></tr>'
        for name, value in pairs.items()
    )
    return _scrolled(
        f'<table class="pairs" aria-label="{escape(label)}"><tbody>{rows}</tbody></table>', label
    )


def _figures(figures: Mapping[str, Figure], numbers: Iterator[int]) -> str:
    shown = []
    for caption, figure in figures.items():
        svg = embedded(figure, f"figure{next(numbers)}")
        wide = (width := figure.get_figwidth()) > _WIDE and width > _FLAT * figure.get_figheight()
        body = _scrolled(svg, described(figure), "scroll wide") if wide else svg
        shown.append(
            f"<figure>{body}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"
        )
    return "\n".join(shown)


def _scrolled(body: str, label: str, css: str = "scroll shaded") -> str:
    """`body` in a container that scrolls by itself, with the keyboard as well, so that the page
    never scrolls sideways.
    """
    return (
        f'<div class="{css}" role="region" tabindex="0" aria-label="{escape(label)}">{body}</div>'
    )


def _reproduce(command: str, made_with: Mapping[str, str]) -> str:
    # a line is broken between options, not within
    broken = " ".join(f"<span>{escape(word)}</span>" for word in command.split(" "))
    return (f"<pre><code>{broken}</code></pre>" if command else "") + _pairs(
        made_with, "Made with"
    )
