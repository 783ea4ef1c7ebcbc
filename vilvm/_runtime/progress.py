"""Progress of a loop: a bar in a terminal or a notebook, elsewhere a line every ten seconds."""

import html
import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressBar"]

_LINE_SECONDS = 10.0  # between two lines of a log
_NOTEBOOK_SECONDS = 0.5  # between two updates of a notebook
_inside: ContextVar[bool] = ContextVar("_inside", default=False)  # of another loop


class ProgressBar:
    """A context that shows the progress of a loop on stderr, with some numbers and the time left.

    A bar in a terminal; a bar in Jupyter and Colab, from half a second on; elsewhere, as in a
    file, a line every ten seconds. The loops within it show nothing.

    Arguments:
        title: the text before the bar.
        total: number of steps.
        done: number of steps done before.
        show: whether to show anything.
    """

    def __init__(self, title: str, total: int, done: int = 0, show: bool = True):
        self._state = _State(title, total, done)
        self._wanted = show
        self._view: _View | None = None
        self._token: Any = None

    def __enter__(self) -> "ProgressBar":
        if self._wanted and not _inside.get():
            self._view = _view(self._state)
            self._view.start()
        self._token = _inside.set(True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _inside.reset(self._token)
        if self._view is not None:
            self._view.stop()
            self._view = None

    @property
    def done(self) -> int:
        """Number of steps done."""
        return self._state.done

    def advance(self, steps: int = 1, numbers: str | None = None) -> None:
        """Advances by `steps`, and shows `numbers` if given."""
        state = self._state
        state.done = min(state.done + steps, state.total)
        if numbers is not None:
            state.numbers = numbers
        if self._view is not None:
            self._view.update()


@dataclass
class _State:
    """How far a loop is."""

    title: str
    total: int
    done: int
    numbers: str = ""

    def __post_init__(self) -> None:
        self.first, self.began = self.done, time.monotonic()

    @property
    def percent(self) -> int:
        """Per cent done, rounded down, so that 100 means the end."""
        return 100 * self.done // max(self.total, 1)

    def line(self) -> str:
        """The title, the share done, the numbers and the time as one line."""
        parts = [f"{self.title}: {self.percent} %", self.numbers, self._time()]
        return "  ".join(part for part in parts if part)

    def _time(self) -> str:
        """The time taken, and the time left at the same pace."""
        taken = time.monotonic() - self.began
        if self.done == self.total:
            return f"in {_clock(taken)}"
        text = f"{_clock(taken)} so far"
        new = self.done - self.first
        if new > 0:
            text += f", {_clock(taken / new * (self.total - self.done))} left"
        return text


def _clock(seconds: float) -> str:
    """A time as minutes and seconds, or hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _View(Protocol):
    """What shows a state."""

    def start(self) -> None:
        """Begins."""

    def update(self) -> None:
        """Shows the state as it is now, if that is due."""

    def stop(self) -> None:
        """Ends."""


def _view(state: _State) -> _View:
    """The view that suits where the process runs."""
    console = Console(stderr=True)
    if console.is_jupyter:
        return _Notebook(state)
    if console.is_terminal and not console.is_dumb_terminal:
        return _Terminal(state, console)
    return _Log(state)


class _Terminal:
    """A bar that is redrawn, and removed at the end."""

    def __init__(self, state: _State, console: Console):
        self._state = state
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(
            state.title, total=state.total, completed=state.done, numbers=""
        )
        self.start, self.stop = self._bar.start, self._bar.stop

    def update(self) -> None:
        state = self._state
        self._bar.update(self._task, completed=state.done, numbers=state.numbers)


class _Log:
    """A line every ten seconds, and one at the end if there was any."""

    def __init__(self, state: _State):
        self._state = state
        self._last = state.began
        self._lines = 0

    def start(self) -> None:
        """Nothing is shown at first."""

    def update(self) -> None:
        now = time.monotonic()
        if now - self._last >= _LINE_SECONDS:
            self._last = now
            self._lines += 1
            if self._state.done < self._state.total:  # else `stop` prints the last line
                self._print()

    def stop(self) -> None:
        if self._lines:
            self._print()

    def _print(self) -> None:
        print(self._state.line(), file=sys.stderr, flush=True)


class _Notebook:
    """A bar in the output of a cell, which keeps its last state."""

    def __init__(self, state: _State):
        self._state = state
        self._last = state.began
        self._handle: Any = None

    def start(self) -> None:
        """Nothing is shown at first."""

    def update(self) -> None:
        now = time.monotonic()
        if now - self._last >= _NOTEBOOK_SECONDS:
            self._last = now
            self._show()

    def stop(self) -> None:
        if self._handle is not None:
            self._show()

    def _show(self) -> None:
        content = self._content()
        if self._handle is not None:
            self._handle.update(content, raw=True)
            return
        from IPython.display import display  # exists where a notebook runs

        self._handle = display(content, raw=True, display_id=True)

    def _content(self) -> dict[str, str]:
        """The state as plain text and as HTML."""
        state = self._state
        line = state.line()
        bar = f'<progress value="{state.done}" max="{state.total}"></progress>'
        return {
            "text/plain": line,
            "text/html": f"<div>{bar} <code>{html.escape(line)}</code></div>",
        }
