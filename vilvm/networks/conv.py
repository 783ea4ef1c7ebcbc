"""Convolutional encoders of square pictures, and their mirror, transposed convolutions.

A stage halves height and width and an encoder ends in an affine map to the code; a decoder runs
the same shapes backwards. Both take and give rows, so that leading dimensions are free, as
everywhere in vilvm.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vilvm._runtime.argument_checks import check_number, check_sizes

__all__ = ["ConvDecoder", "ConvEncoder"]


class ConvEncoder(nn.Module):
    """Pictures to codes: (..., C·side·side) → (..., out_dim), each stage a convolution of stride
    2.

    Arguments:
        side: height and width of a picture, divisible by 2^stages.
        out_dim: size of a code.
        channels: of the stages.
        in_channels: of a picture.

    Raises:
        ValueError: the side cannot be halved so often.

    Example:
        >>> import torch
        >>> from vilvm.networks import ConvEncoder
        >>> ConvEncoder(28, 10)(torch.zeros(5, 3, 784)).shape
        torch.Size([5, 3, 10])
    """

    def __init__(
        self, side: int, out_dim: int, channels: Sequence[int] = (16, 32), in_channels: int = 1
    ):
        super().__init__()
        side, out_dim = (
            check_number("ConvEncoder: side", side),
            check_number("ConvEncoder: out_dim", out_dim),
        )
        channels, in_channels = (
            check_sizes("ConvEncoder: channels", channels),
            check_number("ConvEncoder: in_channels", in_channels),
        )
        self.shape = (in_channels, side, side)
        sizes = [in_channels, *channels]
        stages: list[nn.Module] = []
        for before, after in zip(sizes, channels, strict=False):
            stages += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.SiLU()]
        small = _small(side, len(channels))
        self.stages = nn.Sequential(
            *stages, nn.Flatten(), nn.Linear(sizes[-1] * small**2, out_dim)
        )
        self.stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # half as fast again on a CPU

    def forward(self, x: Tensor) -> Tensor:
        """(..., C·side·side) → (..., out_dim)."""
        return self.stages(x.reshape(-1, *self.shape)).reshape(*x.shape[:-1], -1)


class ConvDecoder(nn.Module):
    """Codes to pictures: (..., in_dim) → (..., C·side·side), the mirror of a ConvEncoder with the
    same `channels`.

    Arguments:
        in_dim: size of a code.
        side: height and width of a picture, divisible by 2^stages.
        channels: of the encoder's stages; run backwards here.
        out_channels: of a picture.

    Raises:
        ValueError: the side cannot be halved so often.

    Example:
        >>> import torch
        >>> from vilvm.networks import ConvDecoder
        >>> ConvDecoder(10, 28)(torch.zeros(5, 3, 10)).shape
        torch.Size([5, 3, 784])
    """

    def __init__(
        self, in_dim: int, side: int, channels: Sequence[int] = (16, 32), out_channels: int = 1
    ):
        super().__init__()
        side, in_dim = (
            check_number("ConvDecoder: side", side),
            check_number("ConvDecoder: in_dim", in_dim),
        )
        channels, out_channels = (
            check_sizes("ConvDecoder: channels", channels),
            check_number("ConvDecoder: out_channels", out_channels),
        )
        small, sizes = _small(side, len(channels)), [*channels[::-1], out_channels]
        stages: list[nn.Module] = [
            nn.Linear(in_dim, sizes[0] * small**2),
            nn.SiLU(),
            nn.Unflatten(-1, (sizes[0], small, small)),
        ]
        for i, before in enumerate(sizes[:-1]):
            last = i == len(channels) - 1
            stages += [
                nn.ConvTranspose2d(before, sizes[i + 1], 4, stride=2, padding=1),
                *([] if last else [nn.SiLU()]),
            ]
        self.stages = nn.Sequential(*stages, nn.Flatten())
        self.stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # half as fast again on a CPU

    def forward(self, z: Tensor) -> Tensor:
        """(..., in_dim) → (..., C·side·side)."""
        return self.stages(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], -1)


def _small(side: int, stages: int) -> int:
    if side % 2**stages:
        raise ValueError(
            f"A picture of side {side} cannot be halved {stages} times; give fewer channels, or "
            "pad it."
        )
    return side // 2**stages
