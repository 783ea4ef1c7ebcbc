"""The compiler of traced functions: a native program where that is possible, else Inductor's."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from vilvm._compile.inductor import inductor
from vilvm._compile.native import NotNative, native

__all__ = ["machine_code"]


def machine_code(
    function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]
) -> Callable[..., Any]:
    """A function as machine code, which also changes tensors in place.

    Arguments:
        function: of tensors.
        inputs: such tensors.

    Raises:
        UntraceableError: the compilation fails, or there is no C++ compiler.
    """
    with suppress(NotNative):
        return native(function, inputs)
    return inductor(function, inputs)
