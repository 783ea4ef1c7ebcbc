"""A Pyro handler that changes the distribution of one site, and leaves the rest of a model as it is."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from pyro.poutine.messenger import Messenger

__all__ = ["Substitute"]


class Substitute(Messenger):
    """Puts ``change(distribution)`` in place of the distribution of the sample site `name`; `met` says whether it came by.

    Arguments:
        name: of the site.
        change: gives a distribution of the same batch and event shape.
    """

    def __init__(self, name: str, change: Callable[[Any], dist.TorchDistribution]):
        super().__init__()
        self.name, self.change, self.met = name, change, False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.name:
            msg["fn"], self.met = self.change(msg["fn"]), True
