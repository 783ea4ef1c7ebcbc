"""The page in headless Chromium: no console error, all pictures, nothing hidden, in light and dark
mode, on a desktop, a phone and paper.
"""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

CHROMIUM = next(
    filter(
        None,
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")),
    ),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"
)

PROBE = """
const pages = {};
async function probe(frame) {
  const page = frame.contentDocument, root = page.documentElement, view = frame.contentWindow;
  const shade = e => {
    for (; e; e = e.parentElement) { const c = view.getComputedStyle(e).backgroundColor; if (!c.endsWith(", 0)")) return c; }
    return "rgb(255, 255, 255)";
  };
  const inked = [...page.querySelectorAll("h1, h2, h3, p, a, dt, dd, .se, th, td, .severity, figcaption, code, footer")];
  const pictures = await Promise.all([...page.querySelectorAll("svg image, img")].map(async e => {
    const picture = new Image();
    picture.src = e.getAttribute("xlink:href") || e.getAttribute("href") || e.src;
    try { await picture.decode(); } catch { return 0; }
    return picture.naturalWidth;
  }));
  return {
    width: root.clientWidth, scrolled: root.scrollWidth, pictures,
    drawings: [...page.querySelectorAll("svg")].map(e => { const b = e.getBoundingClientRect(); return [b.width, b.height]; }),
    colours: inked.map(e => [e.tagName + "." + e.className, view.getComputedStyle(e).color, shade(e)]),
    drawn: [...page.querySelectorAll("svg text")].map(e => [e.textContent, view.getComputedStyle(e).fill, shade(e)]),
    astray: [...page.querySelectorAll("body *")].filter(e => !e.closest(".scroll")
      && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.tagName),
  };
}
addEventListener("load", async () => {
  for (const frame of document.querySelectorAll("iframe")) pages[frame.id] = await probe(frame);
  document.querySelector("pre").textContent = JSON.stringify(pages);
});
"""
SEEN = re.compile(r"<pre>(.+?)</pre>", re.DOTALL)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy".*?>')


def chromium(folder, *options, done=lambda run: True):
    """Runs Chromium; repeats once with a fresh profile if it failed, as it may under load."""
    for attempt in range(2):
        profile = f"--user-data-dir={folder / f'profile-{attempt}'}"
        words = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            profile,
            *map(str, options),
        ]
        run = subprocess.run(words, capture_output=True, text=True, timeout=120)
        if run.returncode == 0 and done(run):
            break
    assert run.returncode == 0, run.stderr
    return run


def complaints(run):
    return [line for line in run.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def html(full_page):
    return full_page.html()


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request, html, tmp_path_factory):
    """The rendered page at the widths of a desktop and of phones, without its security policy,
    which forbids the probing script.
    """
    folder = tmp_path_factory.mktemp(request.param)
    inner = escape(POLICY.sub("", html))
    frames = "".join(
        f'<iframe id="{name}" width="{width}" height="844" srcdoc="{inner}"></iframe>'
        for name, width in WIDTHS.items()
    )
    (folder / "harness.html").write_text(
        "<!DOCTYPE html><meta "
        f"charset=utf-8><body><pre></pre>{frames}<script>{PROBE}</script></body>"
    )
    scheme = f"--blink-settings=preferredColorScheme={int(request.param == 'light')}"
    options = (
        "--dump-dom",
        "--virtual-time-budget=20000",
        scheme,
        f"file://{folder / 'harness.html'}",
    )
    found = SEEN.search(
        chromium(folder, *options, done=lambda run: SEEN.search(run.stdout)).stdout
    )
    assert found, "the browser ended before its script"
    return request.param, json.loads(unescape(found[1]))


WIDTHS = {"desk": 1280, "phone": 390, "small": 320}


def test_console_has_no_error(html, tmp_path):
    (tmp_path / "page.html").write_text(html)
    # A page that breaks the policy must be reported.
    (tmp_path / "bad.html").write_text(
        html.replace(
            "</body>", '<script>"no"</script><img src="https://localhost/x.png"></body>'
        )
    )
    options = ("--enable-logging=stderr", "--v=0", "--dump-dom")
    good, bad = (
        chromium(tmp_path, *options, f"file://{tmp_path / name}")
        for name in ("page.html", "bad.html")
    )
    assert complaints(good) == []
    assert len(complaints(bad)) >= 2
    assert "How to reproduce</h2>" in good.stdout


def test_every_picture_is_rendered(seen, full_page):
    for page in seen[1].values():
        assert (
            len(page["drawings"])
            == len(full_page.figures) + len(full_page.finding_figures) + 3
        )
        assert all(width > 200 and height > 50 for width, height in page["drawings"])
        assert len(page["pictures"]) >= 2  # a sheet of pictures, and points as pixels
        assert min(page["pictures"]) > 50


def test_page_never_scrolls_sideways(seen):
    for name, page in seen[1].items():
        assert page["width"] == pytest.approx(WIDTHS[name], abs=20)  # less a scroll bar
        assert page["scrolled"] <= page["width"]
        assert page["astray"] == []


def luminance(colour):
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first, second):
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_text_has_contrast_in_light_and_dark(seen):
    """The Web Content Accessibility Guidelines 2.2 require a contrast of 4.5 (level AA)."""
    scheme, pages = seen
    for page in pages.values():
        assert len(page["colours"]) > 100
        backgrounds = {
            luminance(back) > 0.5
            for what, _, back in page["colours"]
            if not what.endswith(".severity")
        }
        assert backgrounds == {scheme == "light"}
        faint = [
            entry
            for entry in page["colours"] + page["drawn"]
            if contrast(*entry[1:]) < 4.5
        ]
        assert faint == []


def test_page_prints_on_white(html, tmp_path):
    (tmp_path / "page.html").write_text(html)
    options = (
        "--blink-settings=preferredColorScheme=0",
        "--no-pdf-header-footer",
        f"--print-to-pdf={tmp_path / 'page.pdf'}",
    )
    chromium(tmp_path, *options, f"file://{tmp_path / 'page.html'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    if shutil.which("pdftoppm"):
        subprocess.run(
            [
                "pdftoppm",
                "-r",
                "20",
                "-gray",
                "-l",
                "1",
                tmp_path / "page.pdf",
                tmp_path / "sheet",
            ],
            check=True,
            timeout=60,
        )
        pixels = next(tmp_path.glob("sheet*.pgm")).read_bytes()
        assert sum(pixels[-5000:]) / 5000 > 200
