"""Transforms that binarise data, and chains of transforms; see ``vilvm.data.Transform``.

A Bernoulli likelihood needs binary data. Binarisation reads grey levels in [0, 1] as
probabilities: dynamic binarisation draws each pixel anew for every batch, static binarisation
once. Bounds under the two are not comparable, so every result records the transform.

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
    """Each number in [0, 1] becomes 1 with that probability, else 0; drawn anew for every batch.

    Arguments:
        name: recorded with every result.
        fresh: True: drawn anew for every batch.

    Raises:
        ValueError: when called, if the data are not real numbers in [0, 1].

    Reference: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016.

    Examples:
        >>> import torch
        >>> from vilvm.data import DynamicBinarisation
        >>> DynamicBinarisation()(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """

    name: str = field(default="dynamic binarisation", repr=False)
    fresh: bool = field(default=True, repr=False)

    def __call__(self, batch: Any) -> Any:
        """The binary batch, drawn from torch's generator of its device."""
        return map_tensors(lambda x: torch.bernoulli(_probabilities(x)), batch)


@dataclass(frozen=True)
class StaticBinarisation:
    """Each number in [0, 1] becomes 1 with that probability, else 0; drawn once, from `seed`.

    Arguments:
        seed: of the draws.
        name: recorded with every result.
        fresh: False: drawn once.

    Raises:
        ValueError: `seed` is out of range; or, when called, the data are not in [0, 1].

    Reference: On the Quantitative Analysis of Deep Belief Networks, Salakhutdinov and Murray,
    2008.

    Examples:
        >>> import torch
        >>> from vilvm.data import StaticBinarisation
        >>> binarise, x = StaticBinarisation(seed=3), torch.rand(5, 4)
        >>> torch.equal(binarise(x), binarise(x))
        True
    """

    seed: int = 0
    name: str = field(default="static binarisation", repr=False)
    fresh: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "seed", check_seed("StaticBinarisation: seed", self.seed)
        )

    def __call__(self, batch: Any) -> Any:
        """The binary data, the same at every call; binary data do not change."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(x: Tensor) -> Tensor:
            return torch.bernoulli(_probabilities(x.cpu()), generator=generator).to(
                x.device
            )

        return map_tensors(draw, batch)


@dataclass(frozen=True)
class Chain:
    """Transforms applied one after another.

    Arguments:
        parts: the transforms, in order.

    Raises:
        ValueError: `parts` is empty or holds no transform, or combines a static binarisation with
            a fresh transform.

    Examples:
        >>> import torch
        >>> from vilvm.data import Chain, DynamicBinarisation, PixelErasure
        >>> chain = Chain((DynamicBinarisation(), PixelErasure(0.5)))
        >>> chain.name, chain(torch.zeros(2, 3)).shape
        ('dynamic binarisation, pixel erasure', torch.Size([2, 3]))
    """

    parts: tuple[Transform, ...]

    def __post_init__(self) -> None:
        usable = isinstance(self.parts, tuple) and all(map(is_transform, self.parts))
        if not usable or not self.parts:
            raise ValueError(
                "Chain: takes a tuple of transforms, such as (DynamicBinarisation(), "
                f"PixelErasure()); got {self.parts!r}."
            )
        if self.fresh and any(
            isinstance(part, StaticBinarisation) for part in self.parts
        ):
            raise ValueError(
                "Chain: a static binarisation is drawn once for a whole split, and another part "
                "for every batch; binarise the tensors first, and leave it out of the chain."
            )

    @property
    def name(self) -> str:
        """The names of the parts, in order."""
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
            "levels by the largest."
        )
    # on a GPU this check would synchronise at every batch; torch's own assertion applies there
    if x.device.type == "cpu" and bool((x.amin() < 0) | (x.amax() > 1)):
        low, high = x.amin().item(), x.amax().item()
        raise ValueError(
            f"Binarisation reads its data as probabilities, and these lie between {low:g} and "
            f"{high:g}; scale to [0, 1]."
        )
    return x
