"""The protocol of a tracker: what ``fit`` and you send to a program that compares runs."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

__all__ = ["Tracker"]


@runtime_checkable
class Tracker(Protocol):
    """An object with three methods, to which ``fit(..., tracker=...)`` sends what it does.

    ``fit`` calls ``settings`` once, before the first step, and ``metrics`` at every record. You
    call ``metrics`` with the bounds of ``evaluate``, and ``figure`` with figures of
    ``vilvm.plots``. Within ``vilvm.distributed()`` rank 0 alone calls it.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> class Printed:
        ...     def settings(self, values):
        ...         print("batches of", values["batch_size"])
        ...     def metrics(self, step, values):
        ...         print("step", step, sorted(values)[:2])
        ...     def figure(self, name, figure):
        ...         figure.savefig(f"{name}.png")
        >>> fitted = vilvm.fit(VAE(6, 2), torch.zeros(64, 6), steps=50, tracker=Printed())
        batches of 64
        step 50 ['data_per_second', 'distortion']
    """

    def settings(self, values: Mapping[str, Any]) -> None:
        """Receives the settings of a run: numbers, text and None, by name."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Receives finite numbers by name, after `step` steps of training."""

    def figure(self, name: str, figure: Any) -> None:
        """Receives a figure of matplotlib."""
