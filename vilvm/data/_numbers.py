"""Numbers of other libraries as tensors; none is altered without a word."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm._runtime.notes import note

__all__ = ["Place", "as_float", "as_tensor"]

_EXACT = {torch.float16: 2**11, torch.bfloat16: 2**8, torch.float32: 2**24}
_WIDER = {"u2": "i4", "u4": "i8", "u8": "i8"}  # torch computes with these only


class Place(NamedTuple):
    """Where numbers come from, and the type that floats become.

    Arguments:
        what: the argument, for messages.
        dtype: of floats; None for torch's default.
        part: the part of it, such as ``column 'age'``; "" for all of it.
    """

    what: str
    dtype: torch.dtype | None = None
    part: str = ""

    @property
    def float_type(self) -> torch.dtype:
        """The type that floats become."""
        return self.dtype or torch.get_default_dtype()

    def at(self, part: str) -> "Place":
        """A part of this place."""
        return self._replace(part=", ".join(filter(None, (self.part, part))))

    def error(self, text: str) -> ValueError:
        """An error that names the place."""
        return ValueError(f"{self.what}: {f'{self.part} ' * bool(self.part)}{text}")


def as_tensor(array: Any, place: Place) -> Tensor:
    """A tensor of a NumPy array: floats in the type of `place`, integers and Booleans as they are.

    Raises:
        ValueError: the array holds no real numbers, or one beyond the type.
    """
    array = np.asarray(array)
    kind = array.dtype.kind
    if kind == "c":
        raise place.error("holds complex numbers; pass their real and imaginary parts.")
    if kind not in "fiub":
        raise place.error(
            f"holds no real numbers (NumPy type {array.dtype}); pass an array of numbers, or pad "
            "rows of unequal length with vilvm.data.padded."
        )
    if kind == "f":
        return as_float(array, place)
    wider = _WIDER.get(f"{kind}{array.dtype.itemsize}")
    if wider == "i8" and kind == "u" and array.size and int(array.max()) >= 2**63:
        raise place.error(f"holds {array.max()}, which torch.int64 cannot hold.")
    native = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=wider or native))


def as_float(array: np.ndarray, place: Place) -> Tensor:
    """A tensor of real numbers in the type of `place`.

    Raises:
        ValueError: an integer is not a number of this type, or a float is beyond its range.
    """
    wanted = place.float_type
    if array.dtype.kind != "f":
        _check_exact(array, place)
    elif array.dtype.itemsize > 4 and wanted != torch.float64:
        note(
            "float64 data",
            f"{place.what}: float64 numbers become {wanted}, the type of the model's parameters "
            "or torch's default; a model in float64 (lvm.double()) keeps them.",
        )
    # torch rounds to the nearest, as NumPy does; NumPy has no bfloat16
    native = array.dtype.newbyteorder("=")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        native = np.dtype("f8")
    found = torch.from_numpy(np.array(array, dtype=native)).to(wanted)
    if array.dtype.kind == "f" and bool(found.isinf().any()):
        beyond = np.isfinite(array) & found.isinf().numpy()
        if beyond.any():
            raise place.error(
                f"holds {array[beyond].flat[0]}, which {wanted} cannot hold; rescale the data."
            )
    return found


def _check_exact(array: np.ndarray, place: Place) -> None:
    """Raises ValueError if an integer is altered by the conversion to a float."""
    exact = _EXACT.get(place.float_type, 2**53)
    if array.dtype.kind == "b" or not array.size:
        return
    if int(array.max()) > exact or int(array.min()) < -exact:
        largest = max(array.max(), array.min(), key=lambda n: abs(int(n)))
        raise place.error(
            f"holds the integer {largest}; {place.float_type} keeps whole numbers exactly up to "
            f"{exact}. Drop it if it is an identifier; pass it apart from the other columns if it "
            "is an index; else make it a float."
        )
