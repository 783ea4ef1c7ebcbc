"""The page of a run or of a ledger: one HTML file that needs no network, for screen and paper.

The order is: main numbers, the posterior, findings by severity, tables, curves, pictures, and how
to reproduce them. A content security policy in the page forbids scripts and requests.
``page.html`` is the template; this file computes what the template shows.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure

from vilvm._runtime.files import write_atomic
from vilvm.diagnostics import Diagnosis, Judgement, PosteriorTable
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.evaluation import Ledger
from vilvm.evaluation.ledger_tables import filled
from vilvm.plots import diagnosis_figures, forest, pairs
from vilvm.plots.curves import elbo_curves
from vilvm.report._svg import describe, inline_svg
from vilvm.report._values import as_text, is_number, typeset
from vilvm.report.provenance import environment

__all__ = ["Page", "Table", "diagnosis_page"]

_TERMS = {
    "IWAE": "importance-weighted bound on log p(x), higher is better",
    "AIS": "lower bound by annealed importance sampling, higher is better",
    "ELBO": "evidence lower bound, higher is better",
    "exact": "log p(x) in closed form",
    "rate": "KL(q(z | x) ‖ p(z))",
    "distortion": "−E log p(x | z), lower is better",
    "ESS": "effective sample size of the weights",
    "SSE": "squared error of reconstructions",
    "two-sample": "accuracy of a classifier between draws and data, 0.5 is best",
    "Fréchet": "distance between draws and data, lower is better",
}
_FOREST = (
    "Means with 50 % and 90 % intervals. Orange: a diagnostic of this scalar is beyond its "
    "threshold."
)
_PAIRS = "Draws of the scalars that look worst, two at a time."
_MAX_COLUMNS = 5  # of the summary
# Figures wider than this, in inches and as width over height, scroll on a phone: scaled down to
# its width, their text would be too small.
_WIDE, _FLAT = 6.5, 1.5
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("vilvm.report", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)


class Table(NamedTuple):
    """A table of a page. Numbers, estimates and Booleans are formatted as in the settings.

    Arguments:
        head: names of the columns.
        rows: each with as many cells as the head; the first cell names the row.

    Examples:
        >>> from vilvm.report import Page, Table
        >>> table = Table(["model", "ELBO"], [["PPCA", -3.25]])
        >>> "−3.25" in Page("Models", tables={"On digits": table}).html()
        True
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Page:
    """A page; every part but the title is optional.

    Arguments:
        title: the heading.
        lead: one sentence: what was done, on which data.
        summary: the main numbers, by name: strings, numbers, or estimates with their standard
            errors.
        posterior: table of the posterior; shown with a forest plot, and pairs of the scalars that
            look worst.
        judgements: of a diagnosis, on the posterior and on the model; the head of their findings.
        findings: of a diagnosis; shown by severity, the most severe first, those about the
            posterior beside those about the model.
        finding_figures: plots, by the name of their finding.
        ledger: its groups become tables, one for each protocol.
        tables: further tables, by caption.
        history: of ``fit``; drawn as curves.
        figures: pictures, by caption.
        settings: of the run, by name.
        command: the command that repeats the run; see ``vilvm.report.command``.
        environment: where the page was made; by default the current versions, commit and date.
            ``vilvm.report.environment`` adds device and seed.

    Raises:
        ValueError: `finding_figures` names a finding that is not among `findings`.

    Examples:
        >>> from vilvm.report import Page
        >>> html = Page("PPCA", summary={"ELBO (nats per datum)": -3.25}).html()
        >>> "−3.25" in html, "<script" in html
        (True, False)
    """

    title: str
    lead: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    posterior: PosteriorTable | None = None
    judgements: Sequence[Judgement] = ()
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
        unknown = sorted(set(self.finding_figures) - set(names))
        if unknown:
            raise ValueError(
                f"Page: there is a figure for {unknown[0]!r}, and the findings are {names}."
            )

    def html(self) -> str:
        """The page as one HTML document.

        Raises:
            ValueError: a row of a table is not as long as its head.
        """
        return _TEMPLATES.get_template("page.html").render(_contents(self))

    def write(self, path: Path | str) -> None:
        """Writes the page atomically."""
        write_atomic(Path(path), self.html())


def diagnosis_page(
    found: Diagnosis,
    title: str = "Can this posterior be trusted?",
    *,
    history: Any = None,
    **parts: Any,
) -> Page:
    """The page of a diagnosis: verdict, posterior, findings with their plots, what did not run.

    Arguments:
        found: the diagnosis.
        title: the heading.
        history: of ``fit``, drawn as curves.
        parts: further arguments of ``Page``; its tables come before that of what did not run.

    Returns:
        The page; ``write`` makes the file.

    Examples:
        >>> import torch
        >>> from vilvm import Diagnosis
        >>> from vilvm.report import diagnosis_page
        >>> found = Diagnosis((), {}, {}, torch.arange(3), 0.0)
        >>> "No diagnostic found evidence against" in diagnosis_page(found).html()
        True
    """
    tables = dict(parts.pop("tables", {}))
    rows = [[name, f"cut short: {what}"] for name, what in found.cut.items()]
    rows += [[name, f"not run: {why}"] for name, why in found.skipped.items()]
    if rows:
        tables["Cut short or not run"] = Table(["diagnostic", "why"], rows)
    return Page(
        title,
        **{
            "lead": found.verdict,
            "posterior": found.posterior,
            "judgements": found.judgements,
            "findings": found.findings,
            "finding_figures": diagnosis_figures(found.results, history),
            "history": getattr(history, "history", history),
            "tables": tables,
            **parts,
        },
    )


class _Column(NamedTuple):
    """The findings about the posterior, or about the model.

    Arguments:
        title: the heading; empty if there is no other column.
        badge: of the judgement; empty if there is none.
        sentence: of the judgement.
        severities: how many findings there are of each severity.
        findings: with their figures, the most severe first.
    """

    title: str
    badge: str
    sentence: str
    severities: str
    findings: "list[tuple[Finding, _Figure | None]]"


class _Posterior(NamedTuple):
    """The posterior as the template shows it."""

    table: "_Table"
    left_out: str
    figures: "list[_Figure]"


class _Figure(NamedTuple):
    """A figure as the template shows it."""

    caption: str
    svg: str
    description: str
    wide: bool


class _Table(NamedTuple):
    """A table as the template shows it; the columns in `numeric` are aligned right."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: set[int]


class _LedgerTables(NamedTuple):
    """The groups of a ledger, the meaning of their columns, and the ledger's notes."""

    tables: Sequence[_Table] = ()
    terms: Sequence[str] = ()
    notes: Sequence[str] = ()


def _contents(page: Page) -> dict[str, Any]:
    """The variables of the template."""
    numbers = count(1)  # of the figures, from top to bottom
    shown = {
        "posterior": _posterior(page.posterior, numbers),
        "findings": _columns(page, numbers),
        "ledger": _ledger_tables(page.ledger),
        "tables": [_table(name, table) for name, table in page.tables.items()],
        "training": _training(page.history, numbers),
        "pictures": [
            _figure(name, figure, numbers) for name, figure in page.figures.items()
        ],
        "settings": [
            (n.replace("_", " "), as_text(v)) for n, v in page.settings.items()
        ],
        "environment": [
            (n.replace("_", " "), as_text(v)) for n, v in page.environment.items()
        ],
    }
    sections = {
        "Posterior": shown["posterior"],
        "Findings": shown["findings"],
        "Results": shown["ledger"].tables or shown["tables"],
        "Training": shown["training"],
        "Pictures": shown["pictures"],
        "Settings": shown["settings"],
        "How to reproduce": page.command or shown["environment"],
    }
    return {
        **shown,
        "page": page,
        "sections": [name for name, content in sections.items() if content],
        "summary": _summary(page.summary),
        "columns": _balanced_columns(len(page.summary)),
        "signature": _signature(page.environment),
    }


def _summary(numbers: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and CSS class of each number."""
    shown = [(name, typeset(as_text(value))) for name, value in numbers.items()]
    return [(name, text, "" if is_number(text) else "words") for name, text in shown]


def _balanced_columns(items: int) -> int:
    """The number of columns that fills the rows most evenly, at most _MAX_COLUMNS."""
    rows = max(1, math.ceil(items / _MAX_COLUMNS))
    return math.ceil(items / rows)


def _signature(made_with: Mapping[str, str]) -> str:
    maker = f"Made by vilvm {made_with.get('vilvm', '')}".strip()
    return " · ".join([maker, made_with["date"]]) if "date" in made_with else maker


def _posterior(
    table: PosteriorTable | None, numbers: Iterator[int]
) -> _Posterior | None:
    if table is None or not table.rows:
        return None
    figures = [_figure(_FOREST, forest(table), numbers)]
    together = pairs(table)
    if together is not None:
        figures.append(_figure(_PAIRS, together, numbers))
    caption = f"The posterior, {table.summary}"
    return _Posterior(
        _table(caption, Table(table.head, table.cells)), table.left_out, figures
    )


def _columns(page: Page, numbers: Iterator[int]) -> list[_Column]:
    """The findings in one column, or those about the posterior and the model in two."""
    judgements = {judgement.about: judgement for judgement in page.judgements}
    kinds = [
        about
        for about in ("posterior", "model")
        if about in judgements or any(f.about == about for f in page.findings)
    ]
    columns = []
    for about in kinds:
        own = [finding for finding in page.findings if finding.about == about]
        _, badge, sentence = judgements.get(about, (about, "", ""))
        title = f"About the {about}" if len(kinds) > 1 else ""
        findings = list(_findings(page, own, numbers))
        columns.append(_Column(title, badge, sentence, _severities(own), findings))
    return columns


def _findings(
    page: Page, findings: Sequence[Finding], numbers: Iterator[int]
) -> Iterator[tuple[Finding, _Figure | None]]:
    """Findings by severity, each with its figure."""
    for finding in sorted(findings, key=lambda finding: -finding.severity):
        figure = page.finding_figures.get(finding.name)
        yield finding, figure and _figure("", figure, numbers)


def _severities(findings: Sequence[Finding]) -> str:
    """How many findings there are of each severity."""
    counts = Counter(finding.severity for finding in findings)
    present = [
        severity for severity in sorted(Severity, reverse=True) if counts[severity]
    ]
    return ", ".join(f"{counts[severity]} {severity.name}" for severity in present)


def _training(history: Any, numbers: Iterator[int]) -> _Figure | None:
    """The curves of a history that is not empty."""
    if history is None or not len(history):
        return None
    return _figure("", elbo_curves(history), numbers)


def _figure(caption: str, figure: Figure, numbers: Iterator[int]) -> _Figure:
    svg = inline_svg(figure, f"figure{next(numbers)}")
    width, height = figure.get_size_inches()
    return _Figure(
        caption, svg, describe(figure), width > _WIDE and width > _FLAT * height
    )


def _ledger_tables(ledger: Ledger | None) -> _LedgerTables:
    if ledger is None or not len(ledger):
        return _LedgerTables()
    groups = [
        _table(str(p), Table(*filled(rows))) for p, rows in ledger.groups().items()
    ]
    heads = [name for table in groups for name in table.head]
    used = [term for term in _TERMS if any(name.startswith(term) for name in heads)]
    return _LedgerTables(
        groups, [f"{term}: {_TERMS[term]}" for term in used], ledger.notes
    )


def _table(caption: str, table: Table) -> _Table:
    rows = [[typeset(as_text(cell)) for cell in row] for row in table.rows]
    for row in rows:
        if len(row) != len(table.head):
            raise ValueError(
                f"Page: a row of the table {caption!r} has {len(row)} cells under a head of "
                f"{len(table.head)}: {row}."
            )
    columns = enumerate(zip(*rows, strict=True))
    numeric = {i for i, column in columns if i > 0 and any(map(is_number, column))}
    return _Table(caption, table.head, rows, numeric)
