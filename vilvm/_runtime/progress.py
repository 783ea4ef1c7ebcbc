"""A progress bar, shown on a terminal only."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressBar"]


class ProgressBar:
    """A context that shows the progress of a loop, some numbers and the time left.

    Arguments:
        title: the text before the bar.
        total: number of steps.
        done: number of steps done before.
        show: whether to show the bar; by default on a terminal only.
    """

    def __init__(self, title: str, total: int, done: int = 0, show: bool | None = None):
        console = Console(stderr=True)
        shown = show
        if show is None:
            shown = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not shown,
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, numbers="")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, steps: int = 1, numbers: str | None = None) -> None:
        """Advances by `steps`, and shows `numbers` if given."""
        if numbers is None:
            self._bar.advance(self._task, steps)
        else:
            self._bar.update(self._task, advance=steps, numbers=numbers)
