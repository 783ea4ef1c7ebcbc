"""Arguments that depend on the step, which ``fit(arguments=...)`` passes to model and guide.

They are tensors, and inputs of a compiled step like the batch, so that one program serves all
their values.
"""

import inspect
from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm.lvm import ContractError, Wrapped

__all__ = ["Arguments", "Call", "Called", "as_tensors", "check_arguments"]

Arguments = Callable[[int], Mapping[str, Any]]


class Call(NamedTuple):
    """A batch with arguments, for model and guide.

    Arguments:
        batch: the batch.
        arguments: tensors that depend on the step, passed by name.
    """

    batch: Any
    arguments: dict[str, Tensor]


class Called(Wrapped):
    """A pair whose model and guide are called with arguments.

    Arguments:
        lvm: the pair.
        arguments: tensors by name.
    """

    def __init__(self, lvm: Any, arguments: dict[str, Tensor]):
        super().__init__(lvm)
        self.arguments = arguments

    def model(self, batch: Any) -> Any:
        """p(x | z) p(z) at the arguments."""
        return self.inner_model(batch, **self.arguments)

    def guide(self, batch: Any) -> Any:
        """q(z | x) at the arguments."""
        return self.inner_guide(batch, **self.arguments)


def as_tensors(
    given: Any,
    lvm: torch.nn.Module,
    device: torch.device,
) -> dict[str, Tensor]:
    """The arguments of a step as tensors.

    Arguments:
        given: what ``arguments(step)`` returned.
        lvm: whose parameters decide whether floats become float64.
        device: of the tensors.

    Raises:
        ValueError: `given` is not a dict of numbers and tensors.
    """
    if not isinstance(given, Mapping):
        raise ValueError(
            "fit: arguments(step) must return a dict of numbers and tensors by name; got a "
            f"{type(given).__name__}."
        )
    first = next(lvm.parameters(), None)
    double = first is not None and first.dtype == torch.float64
    return {
        str(name): _as_tensor(name, value, device, double)
        for name, value in given.items()
    }


def _as_tensor(
    name: str,
    value: Any,
    device: torch.device,
    double: bool,
) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to(device)
    if not isinstance(value, Number | np.generic):
        raise ValueError(
            f"fit: arguments(step) gives {name} = {value!r}; give a number or a tensor."
        )
    number: Any = value.item() if isinstance(value, np.generic) else value
    dtype = None
    if double and isinstance(number, float):
        dtype = torch.float64
    return torch.tensor(number, device=device, dtype=dtype)


def check_arguments(lvm: Any, arguments: dict[str, Tensor]) -> None:
    """Raises ContractError unless model and guide accept these arguments, and can omit them."""
    for part in ("model", "guide"):
        try:
            signature = inspect.signature(getattr(lvm, part))
        except (TypeError, ValueError):
            continue  # a function that is not written in Python
        try:
            signature.bind(None, **arguments)
            signature.bind(None)
        except TypeError as error:
            raise ContractError(
                f"fit: the {part} of {type(lvm).__name__} must take {sorted(arguments)} after "
                "the batch, each with a default, which records and evaluate use, such as "
                f"{part}(batch, {next(iter(arguments), 'beta')}=1.0); it is {part}{signature} "
                f"({error})."
            ) from None
