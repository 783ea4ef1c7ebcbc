"""The code blocks of README and docs run, and so do the docstring examples."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
CHAPTERS = ROOT / "docs" / "learn"  # whose blocks build on each other: test_learn.py
BLOCKS = [
    (page.name, number, block)
    for page in PAGES
    if page.parent != CHAPTERS
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    )
]
FILES = {
    **{p.relative_to(ROOT): p for p in ROOT.glob("vilvm/**/*.py")},
    **{Path("vilvm", p.relative_to(ROOT)): p for p in ROOT.glob("models/**/*.py")},
}
DOCUMENTED = sorted(
    ".".join(name.with_suffix("").parts).removesuffix(".__init__")
    for name, path in FILES.items()
    if ">>> " in path.read_text(encoding="utf-8")
)


LONG_BLOCKS = {
    ("choose_a_guide.md", 0),
    ("count_vae.md", 0),
    ("deep_markov.md", 0),
    ("from_numpyro.md", 0),
    ("inference.md", 6),
    ("pareto_k.md", 0),
    ("time_series.md", 0),
}


def is_long(page, number, block):
    costly = "diagnose(" in block or "compare(" in block
    return costly or (page, number) in LONG_BLOCKS


@pytest.mark.parametrize(
    ("page", "number", "block"),
    [pytest.param(*b, marks=pytest.mark.slow if is_long(*b) else ()) for b in BLOCKS],
    ids=[f"{b[0]}-{b[1]}" for b in BLOCKS],
)
def test_block_runs(page, number, block):
    exec(compile(block, f"{page}[{number}]", "exec"), {"__name__": "__main__"})


def test_pictures_exist():
    shown = {
        page.parent / name
        for page in PAGES
        for name in re.findall(r"!\[.*?\]\(([^()\s]+\.png)\)", page.read_text("utf-8"))
    }
    assert shown
    assert not [file for file in shown if not file.is_file()]


def test_readme_blocks_have_at_most_thirty_lines():
    for page, number, block in BLOCKS:
        if page == "README.md":
            lines = [line for line in block.splitlines() if line.strip()]
            assert len(lines) <= 30, number


LONG = {
    "vilvm.evaluation.ais",
    "vilvm.inference.refine",
    "vilvm.diagnostics.convergence",
    "vilvm.diagnostics.diagnose",
}


@pytest.mark.parametrize(
    "module",
    [pytest.param(m, marks=pytest.mark.slow) if m in LONG else m for m in DOCUMENTED],
)
def test_docstring_examples_run(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed
