"""The site: it builds without a warning, its links lead somewhere, nothing is fetched when it is
read, code blocks and formulas are rendered, and pages fit a desktop and a phone.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    words = ["-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class Page(HTMLParser):
    """The targets and addresses of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []  # that a reader follows
        self.loaded: list[str] = []  # that the browser follows
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(found.get("href", ""))


@pytest.fixture(scope="module")
def pages(site):
    return {p: Page(p.read_text("utf-8")) for p in site.rglob("*.html")}


def broken(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """Local addresses that lead nowhere."""
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the root
            continue
        for link in {*page.links, *page.loaded}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            target = target.resolve()
            fragment = unquote(parts.fragment)
            if not target.is_file():
                yield f"{path.relative_to(site)}: {link}"
            elif fragment and target in pages and fragment not in pages[target].ids:
                yield f"{path.relative_to(site)}: {link} has no such heading"


def test_every_link_leads_somewhere(site, pages):
    assert len(pages) > 60
    assert list(broken(site.resolve(), pages)) == []


def test_nothing_is_fetched_from_the_network(site, pages):
    fetched = [a for page in pages.values() for a in page.loaded if urlsplit(a).netloc]
    assert fetched == []
    styles = "".join(p.read_text("utf-8") for p in site.rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\s*[\"']?https?:", styles)


def test_formulas_are_mathml(site):
    text = (site / "learn/variational_inference/index.html").read_text("utf-8")
    assert text.count("<math") > 10
    assert "arithmatex" not in text
    assert not re.search(r"\$[^<]*\\[a-z]+", re.sub(r"<pre>.*?</pre>", "", text))


def test_examples_of_the_reference_are_code_blocks(site):
    for path in (site / "reference").rglob("*.html"):
        text = path.read_text("utf-8")
        assert "<blockquote>" not in text, path
        prompts = text.count("&gt;&gt;&gt;")
        assert prompts == text.count('<span class="gp">&gt;&gt;&gt;'), path


def test_reference_has_a_page_a_room(site):
    sizes = {p.parent.name: p.stat().st_size for p in site.glob("reference/*/*.html")}
    assert {"training", "evaluation", "diagnostics"} <= set(sizes)
    assert max(sizes.values()) < 600_000, sizes


def test_chapters_show_results_and_offer_notebooks(site):
    for page in site.glob("learn/*/index.html"):
        text = page.read_text("utf-8")
        assert 'class="language-text result' in text or "result highlight" in text, page
        notebooks = re.findall(r'href="([^"]*\.ipynb)"', text)
        assert len(notebooks) == 1
        assert (page.parent / notebooks[0]).is_file()


PROBE = """
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const root = frame.contentDocument.documentElement;
    const wide = [...frame.contentDocument.querySelectorAll("article pre > code")]
      .filter(e => e.scrollWidth > e.clientWidth + 1 && !e.closest(".result"));
    return [frame.id, root.scrollWidth - root.clientWidth, wide.length].join(" ");
  });
  document.querySelector("pre").textContent = found.join(";");
});
"""
SHOWN = {
    "home": "index.html",
    "chapter": "learn/variational_inference/index.html",
    "gallery": "gallery/index.html",
    "extending": "extending/index.html",
    "room": "reference/evaluation/index.html",
}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1300, 400])
def test_pages_fit_the_screen(site, tmp_path, width):
    """No page scrolls sideways; at 1300 pixels no code block does."""
    frames = "".join(
        f'<iframe id="{name}" width="{width}" height="900" src="{page}"></iframe>'
        for name, page in SHOWN.items()
    )
    harness = site / f"harness-{width}.html"
    harness.write_text(f"<!DOCTYPE html><pre></pre>{frames}<script>{PROBE}</script>")
    words = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
        *("--disable-dev-shm-usage", "--allow-file-access-from-files"),
        *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000", "--dump-dom"),
        f"file://{harness}",
    ]
    try:
        seen = subprocess.run(
            words, capture_output=True, text=True, timeout=240, check=True
        ).stdout
    finally:
        harness.unlink()
    found = re.search(r"<pre>(.+?)</pre>", seen, re.DOTALL)
    assert found, seen[:500]
    rows = [row.split() for row in unescape(found[1]).split(";")]
    assert [row[0] for row in rows] == list(SHOWN)
    assert [row for row in rows if int(row[1]) > 0] == []
    if width >= 1300:
        assert [row for row in rows if int(row[2])] == []
