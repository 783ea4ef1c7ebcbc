"""Transforms of data, recorded with every result; see ``vilvm.data.Transform``.

A Bernoulli likelihood needs binary data. Grey levels in [0, 1] are read as probabilities: dynamic
binarisation draws each pixel anew every time a datum is seen, static binarisation once for all.
Bounds under the two cannot be compared.

References: On the Quantitative Analysis of Deep Belief Networks, Salakhutdinov and Murray, 2008
(static); Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016 (dynamic).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_seed
from vilvm.data.data import Transform, is_transform
from vilvm.data.tensors import map_tensors

__all__ = ["Chain", "DynamicBinarisation", "StaticBinarisation"]


@dataclass(frozen=True)
class DynamicBinarisation:
    """Each number in [0, 1] becomes 1 with that probability, else 0, anew for every batch."""

    name: str = field(default="dynamic binarisation", repr=False)
    fresh: bool = field(default=True, repr=False)

    def __call__(self, batch: Any) -> Any:
        """The binary batch; noise from torch's generator of its device."""
        return map_tensors(lambda x: torch.bernoulli(_probabilities(x)), batch)


@dataclass(frozen=True)
class StaticBinarisation:
    """Each number in [0, 1] becomes 1 with that probability, else 0, once, from `seed`."""

    seed: int = 0
    name: str = field(default="static binarisation", repr=False)
    fresh: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed("StaticBinarisation: seed", self.seed))

    def __call__(self, batch: Any) -> Any:
        """The binary data, the same at every call; what is binary already stays as it is."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(x: Tensor) -> Tensor:
            return torch.bernoulli(_probabilities(x.cpu()), generator=generator).to(x.device)

        return map_tensors(draw, batch)


@dataclass(frozen=True)
class Chain:
    """Transforms one after the other.

    Arguments:
        parts: the transforms, the first one first.

    Raises:
        ValueError: there is none, one is no transform, or a static binarisation stands beside one
            that is drawn for every batch.
    """

    parts: tuple[Transform, ...]

    def __post_init__(self) -> None:
        if (
            not isinstance(self.parts, tuple)
            or not self.parts
            or not all(map(is_transform, self.parts))
        ):
            raise ValueError(
                "Chain: takes a tuple of transforms, such as (DynamicBinarisation(), "
                f"PixelErasure()); got {self.parts!r}."
            )
        if self.fresh and any(isinstance(part, StaticBinarisation) for part in self.parts):
            raise ValueError(
                "Chain: a static binarisation is drawn once for a whole split, and another part "
                "for every batch; apply it to the tensors "
                "first, and leave it out here."
            )

    @property
    def name(self) -> str:
        """Those of its parts, in order."""
        return ", ".join(part.name for part in self.parts)

    @property
    def fresh(self) -> bool:
        """Whether any part is drawn anew for every batch."""
        return any(part.fresh for part in self.parts)

    def __call__(self, batch: Any) -> Any:
        """The batch after the last part."""
        for part in self.parts:
            batch = part(batch)
        return batch


def _probabilities(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(
            f"Binarisation reads its data as probabilities, and these are {x.dtype}; divide grey "
            "levels by their largest."
        )
    # Not looked at on a GPU, where it would make the host wait at every batch; there torch's own
    # assertion watches.
    if x.device.type == "cpu" and bool((x.amin() < 0) | (x.amax() > 1)):
        low, high = x.amin().item(), x.amax().item()
        raise ValueError(
            f"Binarisation reads its data as probabilities, and these lie between {low:g} and "
            f"{high:g}; scale to [0, 1]."
        )
    return x
