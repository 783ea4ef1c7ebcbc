"""Pyro handlers for one site of a model, which do not change the other sites."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from pyro.poutine.messenger import Messenger

__all__ = ["CaptureSite", "Substitute"]


class CaptureSite(Messenger):
    """Captures the distribution of the sample site `name` in `fn`; None if there is no such site.

    Sites within it are hidden from the handlers outside.
    """

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.fn: Any = None

    def _process_message(self, msg: Any) -> None:
        super()._process_message(msg)
        if msg["type"] == "sample":
            msg["stop"] = True
            if msg["name"] == self.name:
                self.fn = msg["fn"]


class Substitute(Messenger):
    """Replaces the distribution of the sample site `name` by ``change(distribution)``.

    `found` records whether the site exists.

    Arguments:
        name: of the site.
        change: returns a distribution of the same batch and event shape.
    """

    def __init__(self, name: str, change: Callable[[Any], dist.TorchDistribution]):
        super().__init__()
        self.name, self.change, self.found = name, change, False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.name:
            msg["fn"], self.found = self.change(msg["fn"]), True
