"""What ``fit`` returns, and what it passes to its callbacks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vilvm._runtime.results import Result, Table, plots
from vilvm.lvm import LatentVariableModel
from vilvm.training.history import History

__all__ = ["Event", "Fit"]


class Event(NamedTuple):
    """What a callback receives at every record.

    Arguments:
        lvm: the model with its current parameters.
        history: the records so far, the newest last.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> def enough(event):
        ...     return event.history[-1].step >= 100
        >>> vilvm.fit(VAE(6, 2), torch.zeros(64, 6), steps=150, callbacks=[enough]).stopped
        'callback'
    """

    lvm: LatentVariableModel
    history: History


@dataclass(frozen=True, repr=False)
class Fit(Result):
    """What ``fit`` returns; the trained parameters are in the model.

    It prints, and shows in a notebook, as a sentence on the run and a table of its last records.

    Arguments:
        history: a record every `validate_every` epochs, where patience ends, and at the last step.
        steps: taken, including those before a resumption.
        stopped: "finished", "early" (no better validation bound for `patience` epochs),
            "callback" or "interrupted".
        best_step: the step whose parameters the model now has: that of the best record with
            validation data, the last step without.
        seconds: of training, including those before a resumption.
        compile_seconds: of compilation in this call; not part of `seconds`.
        skipped: steps that changed nothing, because their loss or gradient was not finite.
        protocol: the data trained on; see ``Data.protocol``.
        settings: all that a checkpoint must agree with to be resumed.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> fitted = vilvm.fit(VAE(6, 2), torch.zeros(64, 6), steps=5)
        >>> fitted.steps, fitted.best_step, fitted.stopped, fitted.skipped
        (5, 5, 'finished', 0)
    """

    history: History
    steps: int
    stopped: str
    best_step: int
    seconds: float
    compile_seconds: float
    skipped: int
    protocol: dict[str, Any]
    settings: dict[str, Any]

    def to_frame(self) -> Any:
        """The history as a pandas DataFrame, one row a record; see ``History.to_frame``."""
        return self.history.to_frame()

    def plot(self) -> Any:
        """The curves of the run, a matplotlib figure; see ``vilvm.plots.elbo_curves``.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return plots().elbo_curves(self.history)

    def _headline(self) -> Mapping[str, Any]:
        return {
            "steps": self.steps,
            "stopped": repr(self.stopped),
            "best_step": self.best_step,
            "skipped": self.skipped,
            "seconds": self.seconds,
        }

    def _contents(self) -> Iterator[str | Table]:
        skipped = f", {self.skipped:,} of them skipped" if self.skipped else ""
        yield (
            f"{self.steps:,} steps in {self.seconds:.3g} s{skipped}; stopped: {self.stopped}; the "
            f"model has the parameters of step {self.best_step:,}. Bounds in nats per "
            "datum, or of all data together if they share a latent."
        )
        yield from self.history._contents()
