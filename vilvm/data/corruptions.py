"""Corruptions of data, and the pairs (corrupted, clean) that train a denoising auto-encoder.

Each corruption is a transform of rows with one number per pixel; its noise comes from torch's
generator of the batch's device. ``torchvision.transforms.v2`` cannot replace them: it clips its
noise to the grey scale, and erases the same block in the whole batch.

Reference: Stacked Denoising Autoencoders: Learning Useful Representations in a Deep Network with a
Local Denoising Criterion, Vincent, Larochelle, Lajoie, Bengio and Manzagol, 2010.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from vilvm._runtime.argument_checks import check_number, check_positive, check_sizes
from vilvm.data.data import Transform, is_transform
from vilvm.data.tensors import map_tensors

__all__ = [
    "BlockMasking",
    "Blur",
    "Corrupted",
    "GaussianNoise",
    "HalfErasure",
    "PixelErasure",
]


@dataclass(frozen=True)
class GaussianNoise:
    """x̃ = x + scale · ε, ε ~ N(0, I), not clipped to the grey scale.

    Arguments:
        scale: standard deviation of the noise, in units of the data.
        name: recorded with every result.
        fresh: True: drawn anew for every batch.

    Raises:
        ValueError: `scale` is not positive; or, when called, the data are not real numbers.

    Examples:
        >>> import torch
        >>> from vilvm.data import GaussianNoise
        >>> GaussianNoise(0.1)(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    scale: float = 0.5
    name: str = field(default="Gaussian noise", repr=False)
    fresh: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "scale", check_positive("GaussianNoise: scale", self.scale)
        )

    def __call__(self, batch: Any) -> Any:
        """The noisy batch."""
        return map_tensors(
            lambda x: _real(x, self.name) + self.scale * torch.randn_like(x), batch
        )


@dataclass(frozen=True)
class PixelErasure:
    """Each number becomes 0 with probability `share`, independently of all others.

    Arguments:
        share: above 0 and at most 1.
        name: recorded with every result.
        fresh: True: drawn anew for every batch.

    Raises:
        ValueError: `share` is out of range; or, when called, the data are not real numbers.

    Examples:
        >>> import torch
        >>> from vilvm.data import PixelErasure
        >>> PixelErasure(1.0)(torch.ones(1, 3))
        tensor([[0., 0., 0.]])
    """

    share: float = 0.5
    name: str = field(default="pixel erasure", repr=False)
    fresh: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "share", check_positive("PixelErasure: share", self.share)
        )
        _check(
            self.share <= 1,
            f"PixelErasure: share must be above 0 and at most 1; got {self.share}.",
        )

    def __call__(self, batch: Any) -> Any:
        """The batch with erased pixels."""
        return map_tensors(self._erase, batch)

    def _erase(self, x: Tensor) -> Tensor:
        return _real(x, self.name).where(torch.rand_like(x) >= self.share, 0.0)


@dataclass(frozen=True)
class BlockMasking:
    """A square block of pixels, at a random position in each picture, becomes 0 in all channels.

    Arguments:
        size: side of the block, in pixels; the whole block is within the picture.
        image_shape: (height, width) or (channels, height, width) of a row.
        name: recorded with every result.
        fresh: True: drawn anew for every batch.

    Raises:
        ValueError: `size` or `image_shape` is out of range; or, when called, a row has another
            number of pixels.

    Examples:
        >>> import torch
        >>> from vilvm.data import BlockMasking
        >>> BlockMasking(2, (3, 3))(torch.ones(5, 9)).sum(1)
        tensor([5., 5., 5., 5., 5.])
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
        """The batch with a block erased from every picture."""
        return map_tensors(self._mask, batch)

    def _mask(self, x: Tensor) -> Tensor:
        pictures = _pictures(x, self.image_shape, "BlockMasking")
        height, width = self.image_shape[-2:]
        rows = self._interval(x, height)
        columns = self._interval(x, width)
        block = rows[:, None, :, None] & columns[:, None, None, :]
        return pictures.masked_fill(block, 0.0).reshape(x.shape)

    def _interval(self, x: Tensor, length: int) -> Tensor:
        """Which of `length` positions are in the block, shape (num_data, length)."""
        start = torch.randint(length - self.size + 1, (len(x), 1), device=x.device)
        position = torch.arange(length, device=x.device)
        return (position >= start) & (position < start + self.size)


@dataclass(frozen=True)
class HalfErasure:
    """One half of each picture becomes 0 in all channels.

    Arguments:
        half: "left", "right", "top" or "bottom".
        image_shape: (height, width) or (channels, height, width) of a row.
        name: recorded with every result.
        fresh: False: nothing is random.

    Raises:
        ValueError: `half` is unknown, or `image_shape` is out of range.

    Examples:
        >>> import torch
        >>> from vilvm.data import HalfErasure
        >>> HalfErasure("top", (2, 2))(torch.ones(1, 4))
        tensor([[0., 0., 1., 1.]])
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
        """Which numbers of a row are not erased, Boolean, shape (D,)."""
        height, width = self.image_shape[-2:]
        down, across = torch.arange(height)[:, None], torch.arange(width)
        erased = {"left": across < width // 2, "right": across >= width - width // 2}
        erased |= {"top": down < height // 2, "bottom": down >= height - height // 2}
        return (~erased[self.half]).expand(self.image_shape).reshape(-1)

    def __call__(self, batch: Any) -> Any:
        """The batch with half of each picture erased."""
        return map_tensors(
            lambda x: x * self.observed.to(x).reshape(x.shape[1:]), batch
        )


@dataclass(frozen=True)
class Blur:
    """Each picture, extended by its mirror image, is convolved with a Gaussian.

    Arguments:
        scale: standard deviation of the Gaussian, in pixels.
        image_shape: (height, width) or (channels, height, width) of a row.
        name: recorded with every result.
        fresh: False: nothing is random.

    Raises:
        ValueError: `scale` or `image_shape` is out of range; or, when called, a row has another
            number of pixels.

    Examples:
        >>> import torch
        >>> from vilvm.data import Blur
        >>> Blur(1.0, (3, 3))(torch.ones(5, 9)).shape
        torch.Size([5, 9])
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
        if not x.is_floating_point():
            return self._blur(x.float()).round().to(x.dtype)
        pictures = _pictures(x, self.image_shape, "Blur")
        # the mirror image ends there
        reach = min(int(3 * self.scale + 0.5), min(self.image_shape[-2:]) - 1)
        offsets = torch.linspace(
            -reach, reach, 2 * reach + 1, dtype=x.dtype, device=x.device
        )
        density = (-0.5 * (offsets / self.scale).pow(2)).exp()
        density = density / density.sum()
        channels = pictures.shape[1]
        kernel = torch.outer(density, density).expand(channels, 1, -1, -1)
        mirrored = pad(pictures, [reach] * 4, mode="reflect")
        return conv2d(mirrored, kernel, groups=channels).reshape(x.shape)


@dataclass(frozen=True)
class Corrupted:
    """A batch x becomes the pair (x̃, x): corrupted, clean.

    To binarise first, use ``Chain((DynamicBinarisation(), Corrupted(...)))``.

    Arguments:
        corruption: the transform from x to x̃, such as ``GaussianNoise(0.5)``.

    Raises:
        ValueError: `corruption` is not a transform.

    Reference: Extracting and Composing Robust Features with Denoising Autoencoders, Vincent,
    Larochelle, Bengio and Manzagol, 2008.

    Examples:
        >>> import torch
        >>> from vilvm.data import Corrupted, PixelErasure
        >>> Corrupted(PixelErasure(1.0))(torch.ones(1, 2))
        (tensor([[0., 0.]]), tensor([[1., 1.]]))
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
        """The name of the corruption."""
        return self.corruption.name

    @property
    def fresh(self) -> bool:
        """Whether the corruption is drawn anew for every batch."""
        return self.corruption.fresh

    def __call__(self, batch: Any) -> tuple[Any, Any]:
        """(x̃, x)."""
        return self.corruption(batch), batch


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _real(x: Tensor, who: str) -> Tensor:
    _check(
        x.is_floating_point(),
        f"{who}: needs real numbers, and these data are {x.dtype}; divide grey levels by the "
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
    """The rows as pictures, shape (num_data, channels, height, width)."""
    pixels = torch.Size(shape).numel()
    _check(
        x.dim() > 1 and x[0].numel() == pixels,
        f"{who}: data of shape {tuple(x.shape)} are not rows of {pixels} pixels.",
    )
    return x.reshape(len(x), -1, *shape[-2:])
