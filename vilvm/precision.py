"""Mixed precision: networks in bfloat16, and all that follows from them, densities and sums, in float32.

Only the layers whose cost is a matrix product or a convolution are touched. Each runs under ``torch.autocast`` by itself and gives float32, so that no
log-density, no sum over pixels and no Monte Carlo average ever sees bfloat16, whose 8 bits would cost it its digits. Parameters, gradients and
the optimizer's state stay float32.

Reference: Mixed Precision Training, Micikevicius et al., 2018.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["PRECISIONS", "Precision", "check_precision", "networks_in"]

PRECISIONS = ("float32", "bf16")
Precision = str
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


def check_precision(who: str, lvm: object, precision: Any) -> None:
    """Raises ValueError, if there is no such precision, or nothing that could have it."""
    if precision not in PRECISIONS:
        raise ValueError(f"{who}: unknown precision={precision!r}; choose 'float32' or 'bf16'.")
    if precision == "bf16" and not _layers(lvm):
        raise ValueError(
            f"{who}: precision='bf16' is for networks, and {type(lvm).__name__} has no linear or convolutional layer of float32; leave it out."
        )


@contextmanager
def networks_in(precision: Precision, lvm: object) -> Iterator[None]:
    """Within it, the linear and convolutional layers of `lvm` run in this precision, and give float32."""
    layers = _layers(lvm) if precision == "bf16" else []
    for layer in layers:
        layer.__dict__["forward"] = _in_bfloat16(layer.forward, next(layer.parameters()).device.type)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]  # that of its class is seen again


def _layers(lvm: object) -> list[nn.Module]:
    modules = lvm.modules() if isinstance(lvm, nn.Module) else ()
    return [m for m in modules if isinstance(m, _LAYERS) and m.weight.dtype == torch.float32 and "forward" not in m.__dict__]


def _in_bfloat16(forward: Callable[..., Any], device: str) -> Callable[..., Any]:
    def low(*args: Any, **kwargs: Any) -> Any:
        # A weight that was cast once and kept would be that of the step before.
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            return forward(*args, **kwargs).float()

    return low
