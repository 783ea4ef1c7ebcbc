"""Transforms of data, recorded with every result; see ``vilvm.data.Transform``.

A Bernoulli likelihood needs binary data. Grey levels in [0, 1] are read as probabilities: dynamic binarisation draws each pixel
anew every time a datum is seen, static binarisation once for all. Bounds under the two cannot be compared.

References: On the Quantitative Analysis of Deep Belief Networks, Salakhutdinov and Murray, 2008 (static); Importance Weighted
Autoencoders, Burda, Grosse and Salakhutdinov, 2016 (dynamic).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilvm.data import map_tensors

__all__ = ["DynamicBinarisation", "StaticBinarisation"]


@dataclass(frozen=True)
class DynamicBinarisation:
    """Each number in [0, 1] becomes 1 with that probability, else 0, anew for every batch."""

    name: str = "dynamic binarisation"
    fresh: bool = True

    def __call__(self, batch: Any) -> Any:
        """The binary batch; noise from torch's generator of its device."""
        return map_tensors(lambda x: torch.bernoulli(_probabilities(x)), batch)


@dataclass(frozen=True)
class StaticBinarisation:
    """Each number in [0, 1] becomes 1 with that probability, else 0, once, from `seed`."""

    seed: int = 0
    name: str = "static binarisation"
    fresh: bool = False

    def __call__(self, batch: Any) -> Any:
        """The binary data, the same at every call; what is binary already stays as it is."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(x: Tensor) -> Tensor:
            return torch.bernoulli(_probabilities(x.cpu()), generator=generator).to(x.device)

        return map_tensors(draw, batch)


def _probabilities(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(
            f"Binarisation reads its data as probabilities, and these are {x.dtype}; divide grey levels by their largest."
        )
    # Not looked at on a GPU, where it would make the host wait at every batch; there torch's own assertion watches.
    if x.device.type == "cpu" and bool((x.amin() < 0) | (x.amax() > 1)):
        low, high = x.amin().item(), x.amax().item()
        raise ValueError(
            f"Binarisation reads its data as probabilities, and these lie between {low:g} and {high:g}; scale to [0, 1]."
        )
    return x
