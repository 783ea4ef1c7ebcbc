"""The page: its parts, their order, and that it needs no other file."""

import importlib.resources
import re
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.figure import Figure

from tests.report.conftest import posterior_table
from vilvm import Diagnosis, plots, report
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.report import Page, Table, diagnosis_page
from vilvm.report._svg import describe, inline_svg
from vilvm.report._values import as_text, typeset

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Outline(HTMLParser):
    """Checks that tags balance; collects identifiers, attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, name):
        return [value for key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def html(full_page):
    return full_page.html()


def test_tags_balance_and_nothing_is_fetched(html):
    page = Outline(html)
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert "b" not in page.tags  # of the nasty names
    assert "http:" not in html
    assert "https:" not in html
    for value in page.values("href") + page.values("xlink:href") + page.values("src"):
        assert value.startswith(("#", "data:image/png;base64,"))
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", html))


def test_identifiers_are_unique_and_references_resolve(html):
    page = Outline(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = [
        value[1:]
        for value in page.values("href") + page.values("xlink:href")
        if value.startswith("#")
    ]
    links += [target[1:] for target in re.findall(r"url\((.*?)\)", html)] + page.values(
        "aria-labelledby"
    )
    assert len(links) > 50
    assert set(links) <= set(ids)


def test_page_has_every_part_and_figure_descriptions(html, full_page):
    page = Outline(html)
    text = " ".join(page.text)
    for heading in (
        "Posterior",
        "Findings",
        "Results",
        "Training",
        "Pictures",
        "Settings",
        "How to reproduce",
    ):
        assert f">{heading}</h2>" in html
    count = len(full_page.figures) + len(full_page.finding_figures) + 1
    count += 2  # forest and pairs
    assert page.tags.count("svg") == count
    assert page.values("role").count("img") == count
    labels = [
        value
        for value in page.values("aria-label")
        if value.startswith(("Plot", "Pictures"))
    ]
    assert len(labels) >= count
    assert "Pictures. Reconstructions. rows: data, model." in labels
    assert any(
        "ELBO (nats per datum) against epoch. legend: training (the objective), validation ± 1 SE"
        in label
        for label in labels
    )
    for said in ("--latent=5", "batch size", "torch", "pyro", "−1.25", "yes", "–"):
        assert said in text
    assert full_page.title in text
    assert all(row.name in text for row in full_page.ledger.rows)
    assert all(str(protocol) in text for protocol in full_page.ledger.groups())
    assert all(note in text for note in full_page.ledger.notes)
    assert "cannot be ranked against each other" in text


def test_findings_are_sorted_by_severity(html):
    found = re.findall(
        r'<article class="finding (\w+)">.*?<span class="severity">(\w+)</span>(.*?)</article>',
        html,
        re.DOTALL,
    )
    assert [(css, word) for css, word, _ in found] == [
        (g.lower(), g) for g in ("CRITICAL", "WARNING", "NOTE", "OK")
    ]
    assert ["<svg" in body for *_, body in found] == [True, True, True, False]
    assert ["What to try:" in body for *_, body in found] == [True, True, False, False]
    assert "1 CRITICAL, 1 WARNING, 1 NOTE, 1 OK" in html


def test_diagnosis_page_opens_with_posterior_and_two_judgements():
    findings = (
        Finding("Pareto k̂", Severity.NOTE, "Uneven.", ""),
        Finding("Posterior collapse", Severity.WARNING, "Unused.", "", about="model"),
    )
    skipped, cut = {"Rate": "no time."}, {"Pareto k̂": "9 of 50 draws"}
    found = Diagnosis(
        findings,
        {},
        skipped,
        torch.arange(3),
        1.0,
        cut=cut,
        posterior=posterior_table(),
    )
    html = diagnosis_page(found, "Mine", settings={"seed": 1}).html()
    text = re.sub(r"\s+", " ", " ".join(Outline(html).text))
    order = [
        "Mine",
        found.verdict,
        "The posterior, 3,000 draws of the guide",
        "About the posterior",
        "NOTE",
        "there are notes.",
        "Uneven.",
        "About the model",
        "WARNING",
        "The model makes little use of its latents.",
        "Unused.",
        "cut short: 9 of 50 draws",
        "not run: no time.",
    ]
    places = [text.find(words) for words in order]
    assert -1 not in places
    assert text.count("theta[St. Paul's]") >= 2  # table and forest plot
    rest = [
        text.index(words, start)
        for words, start in zip(order[3:], [0] * 10, strict=True)
    ]
    assert places[0] < places[1] < places[2] < rest[0] < text.index("About the model")


def test_every_part_is_optional():
    html = Page("Alone").html()
    page = Outline(html)
    assert "How to reproduce" in html
    assert not {"svg", "dl", "nav", "article"} & set(page.tags)
    assert page.tags.count("h1") == 1


def test_figure_without_its_finding_raises():
    with pytest.raises(
        ValueError, match=r"a figure for 'k', and the findings are \['K'\]"
    ):
        Page(
            "A",
            findings=[Finding("K", Severity.OK, "Good.", "")],
            finding_figures={"k": Figure()},
        )


def test_row_of_another_length_than_head_raises():
    with pytest.raises(ValueError, match="the table 'T' has 1 cells under a head of 2"):
        Page("A", tables={"T": Table(["a", "b"], [[1]])}).html()


def test_page_is_written_atomically(tmp_path):
    Page("A", environment={}).write(tmp_path / "runs" / "page.html")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["page.html"]
    assert (tmp_path / "runs" / "page.html").read_text().endswith("</html>\n")


def test_page_is_deterministic():
    def drawn():
        return Page(
            "A", figures={"k": plots.pareto_k([0.1, 0.9])}, environment={}
        ).html()

    assert drawn() == drawn()


def test_inline_svg_leaves_figure_unchanged_and_themes_colours():
    figure = plots.pareto_k(torch.linspace(0, 1, 900))
    clouds = figure.axes[0].collections
    svg = inline_svg(figure, "f")
    assert [cloud.get_rasterized() for cloud in clouds] == [False, False]
    assert len(svg) < 100_000
    assert "data:image/png;base64," in svg  # 600 points and more are pixels
    assert "var(--text, #000000)" in svg
    assert "var(--grey, #8c959d)" in svg
    assert (
        describe(figure)
        == "Plot. Pareto k̂ against datum. legend: 630 at most 0.7, 270 above 0.7."
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"),
        (True, "yes"),
        (0.004, "0.004"),
        (1234567, "1234567"),
        ((1, 2.0), "1, 2"),
        (float("nan"), "nan"),
        ("a_b", "a_b"),
    ],
)
def test_values_as_text(value, said):
    assert as_text(value) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-1.5 ± 0.2", "−1.5 ± 0.2"),
        ("IWAE-50", "IWAE-50"),
        ("1e-05", "1e-05"),
        ("2026-11-25", "2026-11-25"),
        ("(-inf, -.5)", "(−inf, −.5)"),
    ],
)
def test_only_numbers_get_a_minus_sign(text, said):
    assert typeset(text) == said


def test_environment_without_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outside = report.environment("cpu", 3)
    assert "git commit" not in outside
    assert outside["seed"] == "3"
    assert (
        outside["torch"] == torch.__version__.split("+")[0]
        or outside["torch"] == torch.__version__
    )
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError("git")),
    )
    assert "git commit" not in report.environment()


def test_style_sheet_is_in_the_package():
    style = importlib.resources.files("vilvm.report").joinpath("page.css").read_text()
    assert "@media print" in style
    assert "prefers-color-scheme: dark" in style
    assert "url(" not in style


def test_command_is_quoted_for_the_shell():
    import shlex

    said = report.command(
        "a.b", {"x": 1, "dry_run": True, "none": None, "no": False, "name": "it's 2"}
    )
    assert shlex.split(said) == [
        "python",
        "-m",
        "a.b",
        "--x=1",
        "--dry-run",
        "--name=it's 2",
    ]
