"""Mixed precision: networks in bfloat16, and all that follows from them, densities and sums, in
float32.

Only the layers whose cost is a matrix product or a convolution are touched. Each runs under
``torch.autocast`` by itself and gives float32, so that no log-density, no sum over pixels and no
Monte Carlo average ever sees bfloat16, whose 8 bits would cost it its digits. Parameters,
gradients and the optimizer's state stay float32.

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
    """Raises ValueError, if there is no such precision, or nothing that could have it."""
    if precision not in PRECISIONS:
        raise ValueError(f"{who}: unknown precision={precision!r}; choose 'float32' or 'bf16'.")
    if precision == "bf16" and not _layers(lvm):
        raise ValueError(
            f"{who}: precision='bf16' is for networks, and {type(lvm).__name__} has no linear or "
            "convolutional layer of float32; leave it out."
        )


@contextmanager
def networks_in(precision: Precision, lvm: object) -> Iterator[None]:
    """Within it, the linear and convolutional layers of `lvm` run in this precision, and give
    float32; the innermost context holds.
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
            layer.__dict__.pop("forward", None)  # that of its class is seen again
            if forward is not None:
                layer.__dict__["forward"] = forward


def _layers(lvm: object) -> list[nn.Module]:
    """Those whose weight is a parameter of float32, and whose forward is their class's or ours."""

    def serves(module: nn.Module) -> bool:
        # not the attribute, which a PyroModule may sample
        weight = module._parameters.get("weight")
        own = module.__dict__.get("forward")
        return (
            weight is not None
            and weight.dtype == torch.float32
            and (own is None or isinstance(own, _InBfloat16))
        )

    return [
        m
        for m in (lvm.modules() if isinstance(lvm, nn.Module) else ())
        if isinstance(m, _LAYERS) and serves(m)
    ]


class _InBfloat16:
    """The forward of a layer; of a copy of the layer too, and back in float32 once the context is
    closed.
    """

    def __init__(self, layer: nn.Module, number: int):
        self.layer, self.number = layer, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = type(self.layer).forward
        if self.number not in _open:
            return forward(self.layer, *args, **kwargs)
        # A weight that was cast once and kept would be that of the step before.
        with torch.autocast(self.layer.weight.device.type, torch.bfloat16, cache_enabled=False):  # type: ignore[union-attr]
            return forward(self.layer, *args, **kwargs).float()
