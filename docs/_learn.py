"""Runs the chapters of *Learn* when the site is built, and shows what each block prints and draws.

A chapter is a Markdown page whose ``python`` blocks run from top to bottom in one namespace. Below
a block stands what it prints, and its last expression: a matplotlib Figure as a picture, anything
else as text. The same page becomes a notebook to download. MkDocs runs ``on_page_markdown``. An
exception in a chapter ends the build.

Results are kept in ``.cache/learn`` until the page, vilvm or the gallery changes.
"""

import ast
import base64
import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FOLD = re.compile(r"<details markdown=\"1\">\n<summary>(.*?)</summary>|</details>")


class Shown(NamedTuple):
    """What one block shows: text, and a picture as base64 of a PNG with its description."""

    text: str = ""
    picture: str = ""
    alt: str = ""


def blocks_of(chapter: str) -> list[str]:
    """The code blocks of a chapter."""
    return _BLOCK.findall(chapter)


def run(chapter: str, name: str) -> list[Shown]:
    """Runs all blocks of a chapter, and returns what each shows."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    return [
        _show(block, f"{name}[{number}]", namespace)
        for number, block in enumerate(blocks_of(chapter))
    ]


def _show(block: str, name: str, namespace: dict[str, Any]) -> Shown:
    tree = ast.parse(block)
    value: Any = None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body[-1].value)
            del tree.body[-1]
            exec(compile(tree, name, "exec"), namespace)
            value = eval(compile(last, name, "eval"), namespace)
        else:
            exec(compile(tree, name, "exec"), namespace)
        if value is not None and not hasattr(value, "savefig"):
            print(value)
    if not hasattr(value, "savefig"):
        return Shown(printed.getvalue())
    return Shown(printed.getvalue(), *_picture(value))


def _picture(figure: Any) -> tuple[str, str]:
    """A matplotlib Figure as base64 of a PNG, and its title."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    encoded = base64.b64encode(file.getvalue()).decode()
    return encoded, next(filter(None, titles), "Figure")


def with_results(chapter: str, shown: list[Shown], stem: str) -> str:
    """The chapter with its results below its blocks; picture i is ``stem-i.png``."""
    numbered: Iterator[tuple[int, Shown]] = iter(enumerate(shown))

    def add(block: re.Match[str]) -> str:
        i, result = next(numbered)
        parts = [block[0]]
        if result.text.strip():
            parts += ["", "```{.text .result}", result.text.rstrip(), "```"]
        if result.picture:
            parts += ["", f"![{result.alt}]({stem}-{i}.png)"]
        return "\n".join(parts)

    return _BLOCK.sub(add, chapter)


def notebook(chapter: str) -> str:
    """The chapter as a notebook without results; answers are no longer folded."""
    unfolded = _FOLD.sub(lambda fold: f"*{fold[1]}*" if fold[1] else "", chapter)
    cells = [_cell("code", "%matplotlib inline")]
    for i, part in enumerate(_BLOCK.split(unfolded)):
        if part.strip():
            cells.append(_cell("code" if i % 2 else "markdown", part.strip()))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    content = {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 4}
    return json.dumps(content, indent=1, ensure_ascii=False)


def _cell(kind: str, source: str) -> dict[str, Any]:
    cell = {"cell_type": kind, "metadata": {}, "source": source}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def results_of(chapter: str, name: str) -> list[Shown]:
    """As ``run``, from the cache if nothing has changed."""
    code = [p for room in ("vilvm", "models") for p in (ROOT / room).rglob("*.py")]
    seen = hashlib.sha256(chapter.encode())
    for path in [Path(__file__), *sorted(code)]:
        seen.update(path.read_bytes())
    kept = ROOT / ".cache" / "learn" / f"{name}-{seen.hexdigest()[:16]}.json"
    if not kept.is_file():
        shown = run(chapter, name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        for old in kept.parent.glob(f"{name}-*.json"):
            old.unlink()
        kept.write_text(json.dumps(shown), encoding="utf-8")
    return [Shown(*entry) for entry in json.loads(kept.read_text(encoding="utf-8"))]


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    folder, stem = Path(page.file.src_uri).parent, Path(page.file.src_uri).stem
    if folder != Path("learn") or stem == "index":
        return markdown
    shown = results_of(markdown, stem)
    made: dict[str, str | bytes] = {
        f"{stem}-{i}.png": base64.b64decode(result.picture)
        for i, result in enumerate(shown)
        if result.picture
    }
    made[f"{stem}.ipynb"] = notebook(markdown)
    for name, content in made.items():
        files.append(File.generated(config, f"learn/{name}", content=content))
    link = f"\n\n[Download this chapter as a notebook]({stem}.ipynb)\n"
    return with_results(markdown, shown, stem) + link
