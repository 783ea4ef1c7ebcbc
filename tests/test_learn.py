"""The chapters of *Learn*: they run, their numbers hold, and each becomes a notebook."""

import base64
import json
import re
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))  # where MkDocs finds its hooks

import _learn  # noqa: E402

CHAPTERS = sorted(p for p in ROOT.glob("docs/learn/*.md") if p.stem != "index")


def test_there_are_seven_chapters():
    assert len(CHAPTERS) == 7


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_has_exercises_with_folded_answers(chapter):
    text = chapter.read_text("utf-8")
    exercises = text.split("## Exercises")[1]
    numbered = re.findall(r"^\*\*(\d)\.\*\* ", exercises, re.MULTILINE)
    assert numbered in (["1", "2"], ["1", "2", "3"])
    assert exercises.count("<summary>Answer</summary>") == len(numbered)
    assert exercises.count("</details>") == len(numbered)
    assert sum("assert " in block for block in _learn.blocks_of(text)) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_runs_and_shows_pictures(chapter):
    start = time.process_time()
    shown = _learn.results_of(chapter.read_text("utf-8"), chapter.stem)
    assert time.process_time() - start < 240  # two minutes of two cores
    pictures = [base64.b64decode(s.picture) for s in shown if s.picture]
    assert pictures
    assert all(p.startswith(b"\x89PNG") for p in pictures)
    assert any(s.text.strip() for s in shown)


TWO_BLOCKS = """# Title

```python
a = 1
print("seen")
```

Words, $x^2$.

<details markdown="1">
<summary>Answer</summary>

```python
from matplotlib.figure import Figure

figure = Figure()
figure.suptitle("A line")
figure.subplots().plot([a, 2])
figure
```

</details>
"""


def test_blocks_share_names_and_show_text_and_pictures():
    text, picture = _learn.run(TWO_BLOCKS, "test")
    assert text == _learn.Shown("seen\n")
    assert base64.b64decode(picture.picture).startswith(b"\x89PNG")
    page = _learn.with_results(TWO_BLOCKS, [text, picture], "name")
    assert "```{.text .result}\nseen\n```" in page
    assert "![A line](name-1.png)" in page


def test_failing_block_ends_the_run():
    with pytest.raises(AssertionError):
        _learn.run("```python\nassert 1 == 2\n```\n", "test")


def test_notebook_has_the_blocks_as_cells():
    cells = json.loads(_learn.notebook(TWO_BLOCKS))["cells"]
    assert [c["cell_type"] for c in cells[:4]] == [
        "code",
        "markdown",
        "code",
        "markdown",
    ]
    assert cells[2]["source"] == 'a = 1\nprint("seen")'
    assert "*Answer*" in cells[3]["source"]
    assert not any("details" in c["source"] for c in cells)
