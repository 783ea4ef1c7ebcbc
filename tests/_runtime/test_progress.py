"""Progress shows in a terminal, in a notebook and in a log, and can be turned off."""

import re
from types import SimpleNamespace

import nbformat
import pytest
import torch

import vilvm
from vilvm._runtime import progress
from vilvm._runtime.progress import ProgressBar
from vilvm.models.vae import VAE


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


def run(clock, seconds, steps=100, **options):
    """A loop of steps of equal length."""
    with ProgressBar("counting", steps, **options) as bar:
        for i in range(steps):
            clock.now += seconds / steps
            bar.advance(numbers=f"number {i + 1}")


def test_log_has_a_line_every_ten_seconds(clock, capsys):
    run(clock, 41)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert lines[0] == "counting: 25 %  number 25  0:10 so far, 0:31 left"
    assert lines[-1] == "counting: 100 %  number 100  in 0:41"
    assert len(lines) == 4  # after 10, 21 and 31 seconds, and at the end
    assert all(line.isprintable() for line in lines)


def test_run_shorter_than_ten_seconds_logs_nothing(clock, capsys):
    run(clock, 9.9)
    assert capsys.readouterr().err == ""


def test_hours_are_written_as_hours(clock, capsys):
    run(clock, 7322, steps=2)
    assert capsys.readouterr().err.splitlines()[-1].endswith("in 2:02:02")


def test_terminal_shows_a_bar(clock, capsys, terminal):
    run(clock, 1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "counting" in shown.err
    assert "number" in shown.err


@pytest.mark.parametrize("where", ["log", "terminal"])
def test_progress_can_be_turned_off(clock, capsys, request, where):
    if where == "terminal":
        request.getfixturevalue("terminal")
    run(clock, 100, show=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_loops_within_a_loop_show_nothing(clock, capsys, shown):
    with ProgressBar("outer", 2, show=shown) as bar:
        run(clock, 50)
        bar.advance(2)
    assert "counting" not in capsys.readouterr().err
    run(clock, 50)
    assert "counting" in capsys.readouterr().err


def test_error_ends_the_bar(clock):
    with pytest.raises(ZeroDivisionError), ProgressBar("outer", 2):
        raise ZeroDivisionError
    assert not progress._inside.get()


def test_notebook_updates_one_display(clock, monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda content, raw: shown.append(content))

    def display(content, raw, display_id):
        assert raw
        assert display_id
        shown.append(content)
        return handle

    monkeypatch.setattr("IPython.display.display", display)
    state = progress._State("a < b", 4, 0)
    view = progress._Notebook(state)
    view.start()
    for state.done in range(1, 5):
        clock.now += 0.4
        view.update()
    view.stop()
    assert [c["text/plain"].split(" %")[0] for c in shown] == [
        "a < b: 50",
        "a < b: 100",
        "a < b: 100",
    ]
    assert '<progress value="4" max="4">' in shown[-1]["text/html"]
    assert "a &lt; b" in shown[-1]["text/html"]


def epochs_shown(monkeypatch, **options):
    """The epochs that the bar of a fit names."""
    lines = []
    advance = ProgressBar.advance

    def spy(bar, steps=1, numbers=None):
        lines.append(numbers or "")
        advance(bar, steps, numbers)

    monkeypatch.setattr(ProgressBar, "advance", spy)
    monkeypatch.setattr("vilvm.training._loop._PROGRESS_EVERY", 1)
    vilvm.fit(VAE(6, 2), torch.zeros(10, 6), **options)
    return [tuple(map(int, re.findall(r"epoch (\d+) of (\d+)", n)[0])) for n in lines]


def test_epochs_shown_end_at_the_last(monkeypatch):
    found = epochs_shown(monkeypatch, epochs=3, batch_size=5)
    assert found == [(1, 3), (1, 3), (2, 3), (2, 3), (3, 3), (3, 3)]
    found = epochs_shown(monkeypatch, steps=3, batch_size=5)
    assert found == [(1, 2), (1, 2), (2, 2)]


CELLS = [
    """
import torch
import vilvm
from vilvm.models.ppca import PPCA

x = torch.randn(300, 2) @ torch.randn(2, 6) + 0.3 * torch.randn(300, 6)
lvm = PPCA(6, 2)
fitted = vilvm.fit(lvm, x, steps=600, batch_size=100)
""",
    "vilvm.fit(lvm, x, steps=300, batch_size=100, progress=False)\nNone",
    """
models = {name: PPCA(6, k).maximise(x) for k, name in ((1, "one"), (2, "two"))}
vilvm.compare(models, x, num_samples=50, num_draws=0).to_frame()
""",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's client
def test_notebook_shows_progress_and_a_table(tmp_path):
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS]
    )
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(
        cwd=str(tmp_path)
    )
    trained, silent, table = (cell.outputs for cell in notebook.cells)
    (bar,) = [o.data["text/html"] for o in trained if "data" in o]
    assert "<progress" in bar
    assert re.search("training: 100 %  epoch 200 of 200  ELBO -", bar)
    assert silent == []
    rows = table[-1].data["text/html"]
    assert "<table" in rows
    assert rows.index("<td>two</td>") < rows.index("<td>one</td>")
