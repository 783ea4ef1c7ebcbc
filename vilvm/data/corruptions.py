"""Corruptions of data, and the pairs (corrupted, clean) that a denoising auto-encoder learns from.

Each is a transform like any other: of rows with one number a pixel, noise from torch's generator
of the batch's device.

Reference: Stacked Denoising Autoencoders: Learning Useful Representations in a Deep Network with a
Local Denoising Criterion, Vincent, Larochelle, Lajoie, Bengio and Manzagol, 2010.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_positive, check_sizes
from vilvm.data.data import Transform, is_transform
from vilvm.data.tensors import map_tensors

__all__ = ["BlockMasking", "Blur", "Corrupted", "GaussianNoise", "HalfErasure", "PixelErasure"]


@dataclass(frozen=True)
class GaussianNoise:
    """x̃ = x + scale · ε, ε ~ N(0, I); not cut off at the ends of the grey scale.

    Arguments:
        scale: standard deviation of the noise, in units of the data.
    """

    scale: float = 0.5
    name: str = field(default="Gaussian noise", repr=False)
    fresh: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_positive("GaussianNoise: scale", self.scale))

    def __call__(self, batch: Any) -> Any:
        """The noisy batch."""
        return map_tensors(lambda x: _real(x, self.name) + self.scale * torch.randn_like(x), batch)


@dataclass(frozen=True)
class PixelErasure:
    """Each number becomes 0 with probability `share`, independently of all others.

    Arguments:
        share: between 0 and 1.
    """

    share: float = 0.5
    name: str = field(default="pixel erasure", repr=False)
    fresh: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", check_positive("PixelErasure: share", self.share))
        _check(
            self.share <= 1,
            f"PixelErasure: share must be above 0 and at most 1; got {self.share}.",
        )

    def __call__(self, batch: Any) -> Any:
        """The batch with holes."""
        return map_tensors(
            lambda x: _real(x, self.name).where(torch.rand_like(x) >= self.share, 0.0), batch
        )


@dataclass(frozen=True)
class BlockMasking:
    """A square block of pixels, at a place drawn for each picture, becomes 0 in all channels.

    Arguments:
        size: side of the block; all of it lies within the picture.
        image_shape: (height, width) or (channels, height, width) of a row.
    """

    size: int = 12
    image_shape: tuple[int, ...] = (28, 28)
    name: str = field(default="block masking", repr=False)
    fresh: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        _check_shape(self.image_shape, "BlockMasking")
        object.__setattr__(self, "size", check_number("BlockMasking: size", self.size))
        most = min(self.image_shape[-2:])
        _check(
            0 < self.size <= most,
            f"BlockMasking: size must be between 1 and {most} for such pictures; got {self.size}.",
        )

    def __call__(self, batch: Any) -> Any:
        """The batch, a block missing from every picture."""
        return map_tensors(self._mask, batch)

    def _mask(self, x: Tensor) -> Tensor:
        pictures = _pictures(x, self.image_shape, "BlockMasking")
        erased: list[Tensor] = []
        for length in self.image_shape[-2:]:
            start = torch.randint(length - self.size + 1, (len(x), 1), device=x.device)
            place = torch.arange(length, device=x.device)
            erased.append((place >= start) & (place < start + self.size))
        block = erased[0][:, None, :, None] & erased[1][:, None, None, :]
        return pictures.masked_fill(block, 0.0).reshape(x.shape)


@dataclass(frozen=True)
class HalfErasure:
    """One half of each picture becomes 0 in all channels; the same at every call.

    Arguments:
        half: "left", "right", "top" or "bottom".
        image_shape: (height, width) or (channels, height, width) of a row.
    """

    half: str = "left"
    image_shape: tuple[int, ...] = (28, 28)
    name: str = field(default="half erased", repr=False)
    fresh: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        _check_shape(self.image_shape, "HalfErasure")
        halves = ("left", "right", "top", "bottom")
        _check(
            isinstance(self.half, str) and self.half in halves,
            f"HalfErasure: unknown half {self.half!r}; choose from {list(halves)}.",
        )

    @property
    def observed(self) -> Tensor:
        """Which numbers of a row are left, Boolean, shape (D,)."""
        height, width = self.image_shape[-2:]
        down, across = torch.arange(height)[:, None], torch.arange(width)
        erased = {"left": across < width // 2, "right": across >= width - width // 2}
        erased |= {"top": down < height // 2, "bottom": down >= height - height // 2}
        return (~erased[self.half]).expand(self.image_shape).reshape(-1)

    def __call__(self, batch: Any) -> Any:
        """The batch, half of each row 0."""
        return map_tensors(lambda x: x * self.observed.to(x).reshape(x.shape[1:]), batch)


@dataclass(frozen=True)
class Blur:
    """Each picture convolved with a Gaussian; the same at every call. The edge is continued by its
    mirror image.

    Arguments:
        scale: standard deviation of the Gaussian, in pixels.
        image_shape: (height, width) or (channels, height, width) of a row.
    """

    scale: float = 2.0
    image_shape: tuple[int, ...] = (28, 28)
    name: str = field(default="blur", repr=False)
    fresh: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        _check_shape(self.image_shape, "Blur")
        object.__setattr__(self, "scale", check_positive("Blur: scale", self.scale))

    def __call__(self, batch: Any) -> Any:
        """The blurred batch."""
        return map_tensors(self._blur, batch)

    def _blur(self, x: Tensor) -> Tensor:
        # here, for it takes seconds to import
        from torchvision.transforms.functional import gaussian_blur

        pictures = _pictures(x, self.image_shape, "Blur")
        # mirrored, a picture reaches no further
        reach = min(int(3 * self.scale + 0.5), min(self.image_shape[-2:]) - 1)
        return gaussian_blur(pictures, [2 * reach + 1] * 2, [float(self.scale)] * 2).reshape(
            x.shape
        )


@dataclass(frozen=True)
class Corrupted:
    """A batch x becomes the pair (x̃, x): corrupted, clean. To binarise first:
    ``Chain((DynamicBinarisation(), Corrupted(...)))``.

    Arguments:
        corruption: what makes x̃ of x, such as ``GaussianNoise(0.5)``.
    """

    corruption: Transform

    def __post_init__(self) -> None:
        _check(
            is_transform(self.corruption),
            f"Corrupted: the corruption is a {type(self.corruption).__name__}, not a transform "
            "such as GaussianNoise(0.5).",
        )

    @property
    def name(self) -> str:
        """That of the corruption."""
        return self.corruption.name

    @property
    def fresh(self) -> bool:
        """Whether the corruption is drawn anew for every batch."""
        return self.corruption.fresh

    def __call__(self, batch: Any) -> tuple[Any, Any]:
        """(x̃, x)."""
        return self.corruption(batch), batch


def _check(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


def _real(x: Tensor, who: str) -> Tensor:
    _check(
        x.is_floating_point(),
        f"{who}: needs real numbers, and these data are {x.dtype}; divide grey levels by their "
        "largest.",
    )
    return x


def _check_shape(shape: tuple[int, ...], who: str) -> None:
    sizes = check_sizes(f"{who}: image_shape", shape)
    _check(
        len(sizes) in (2, 3),
        f"{who}: image_shape must be (height, width) or (channels, height, width); got {shape!r}.",
    )


def _pictures(x: Tensor, shape: tuple[int, ...], who: str) -> Tensor:
    """Rows as pictures, (num_data, channels, height, width)."""
    pixels = torch.Size(shape).numel()
    _check(
        x.dim() > 1 and x[0].numel() == pixels,
        f"{who}: data of shape {tuple(x.shape)} are not rows of {pixels} pixels.",
    )
    return x.reshape(len(x), *((1,) if len(shape) == 2 else ()), *shape)
