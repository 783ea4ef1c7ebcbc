"""Mixed precision: networks in bfloat16, densities and sums in float32.

Only layers whose cost is a matrix product or a convolution are changed. Each runs under its own
``torch.autocast`` and returns float32: bfloat16 has 8 significant bits, too few for a log-density,
a sum over pixels or a Monte Carlo average. Parameters, gradients and the optimizer's state stay
float32.

Reference: Mixed Precision Training, Micikevicius et al., 2018.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

__all__ = ["PRECISIONS", "Precision", "check_precision", "networks_in"]

Precision = Literal["float32", "bf16"]
PRECISIONS = ("float32", "bf16")
_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_numbers = itertools.count()
_open: set[int] = set()  # contexts in which layers run in bfloat16


def check_precision(who: str, lvm: object, precision: Any) -> None:
    """Raises ValueError for an unknown precision, or if `lvm` has no layer that can use it."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"{who}: unknown precision={precision!r}; choose 'float32' or 'bf16'."
        )
    if precision == "bf16" and not _layers(lvm):
        raise ValueError(
            f"{who}: precision='bf16' is for networks, and {type(lvm).__name__} has no linear or "
            "convolutional layer of float32; leave it out."
        )


@contextmanager
def networks_in(precision: Precision, lvm: object) -> Iterator[None]:
    """A context in which the linear and convolutional layers of `lvm` compute in this precision.

    They return float32. The innermost of nested contexts applies.
    """
    before = [(layer, layer.__dict__.pop("forward", None)) for layer in _layers(lvm)]
    number = next(_numbers)
    if precision == "bf16":
        _open.add(number)
        for layer, _ in before:
            layer.__dict__["forward"] = _InBfloat16(layer, number)
    try:
        yield
    finally:
        _open.discard(number)
        for layer, forward in before:
            layer.__dict__.pop("forward", None)  # restores the forward of its class
            if forward is not None:
                layer.__dict__["forward"] = forward


def _layers(lvm: object) -> list[nn.Module]:
    """The layers with a float32 weight whose forward is that of their class or of this file."""
    if not isinstance(lvm, nn.Module):
        return []
    return [m for m in lvm.modules() if isinstance(m, _LAYERS) and _is_usable(m)]


def _is_usable(layer: nn.Module) -> bool:
    # not the attribute `weight`, which a PyroModule may sample
    weight = layer._parameters.get("weight")
    own = layer.__dict__.get("forward")
    if weight is None or weight.dtype != torch.float32:
        return False
    return own is None or isinstance(own, _InBfloat16)


class _InBfloat16:
    """The forward of a layer and of its copies; computes in float32 once the context is closed."""

    def __init__(self, layer: nn.Module, number: int):
        self.layer, self.number = layer, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = type(self.layer).forward
        if self.number not in _open:
            return forward(self.layer, *args, **kwargs)
        device: Any = self.layer.weight.device
        # no cache: a cached weight would be that of the previous step
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            return forward(self.layer, *args, **kwargs).float()
