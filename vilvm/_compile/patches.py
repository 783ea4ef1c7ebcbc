"""Patches of Pyro and torch that apply only during a trace.

Pyro reads the values of tensors in a few places, without consequence for the loss: a loss is
turned into a float, NaN causes a warning, a term is left out if it is zero. These patches keep
such values as tensors. Values that the user's model reads are not patched; the tracer raises.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pyro
import torch
from pyro.infer import traceenum_elbo, tracegraph_elbo
from pyro.infer.util import Dice
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["VALUE_IS_READ", "UntraceableError", "traceable"]

VALUE_IS_READ = (
    "Python reads the value of a tensor (if, float(), .tolist(), f-string or the like)"
)


class UntraceableError(RuntimeError):
    """A construct that a graph cannot hold; the message names it."""


@contextmanager
def traceable() -> Iterator[None]:
    """A context in which Pyro reads no tensor's value: nothing is validated, and numbers stay
    tensors.
    """
    with ExitStack() as stack:
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(_item_as_tensor())
        stack.enter_context(_plates_by_number())
        # A distribution made earlier by .expand keeps the validation that was on then.
        for validated in _validated():
            stack.enter_context(
                mock.patch.object(validated, "_validate_sample", _unchecked)
            )
        for name, stand_in in (
            ("warn_if_nan", _unchecked),
            ("warn_if_inf", _unchecked),
            ("is_identically_zero", _is_number(0)),
            ("is_identically_one", _is_number(1)),
        ):
            for module in _pyro_modules_with(name):
                stack.enter_context(mock.patch.object(module, name, stand_in))
        stack.enter_context(
            mock.patch.object(traceenum_elbo, "_get_common_scale", _common_scale)
        )
        stack.enter_context(
            mock.patch.object(Dice, "compute_expectation", _expectation)
        )
        stack.enter_context(
            mock.patch.object(tracegraph_elbo, "_construct_baseline", _without_baseline)
        )
        yield


def _pyro_modules_with(name: str) -> list[Any]:
    """The loaded modules of Pyro that have this global."""
    return [
        m for n, m in sys.modules.items() if n.startswith("pyro.") and name in vars(m)
    ]


def _validated() -> list[type]:
    """Every class of distributions that has its own check of samples."""
    found = []
    left = [Distribution]
    while left:
        kind = left.pop()
        left += [k for k in kind.__subclasses__() if k not in found]
        if "_validate_sample" in vars(kind) and kind not in found:
            found.append(kind)
    return found


@contextmanager
def _item_as_tensor() -> Iterator[None]:
    """A context in which ``x.item()`` is x without a gradient."""

    def read(value: Tensor, *args: Any) -> str:
        raise UntraceableError(VALUE_IS_READ)

    torch.Tensor.item = Tensor.detach  # type: ignore[method-assign]
    try:
        # Printing a tensor calls item(), which now returns a tensor: an endless recursion.
        with (
            mock.patch.object(torch.Tensor, "__format__", read),
            mock.patch.object(torch.Tensor, "__repr__", read),
        ):
            yield
    finally:
        del torch.Tensor.item  # reveals the method of the base class


@contextmanager
def _plates_by_number() -> Iterator[None]:
    """A context in which sequential plates over all their data count in Python.

    A sequential plate is a loop, ``for i in pyro.plate(...)``.
    """
    whole: list[Tensor] = []
    sample = _Subsample.sample
    iterate = IndepMessenger.__iter__

    def sampled(self: Any, *args: Any) -> Tensor:
        drawn = sample(self, *args)
        if self.subsample_size is None or self.subsample_size >= self.size:
            whole.append(drawn)
        return drawn

    def counted(self: Any) -> Iterator[Any]:
        indices = self.indices
        if isinstance(indices, Tensor):
            if not any(indices is w for w in whole):
                raise UntraceableError(
                    f"the plate {self.name!r} goes one by one through indices that are drawn or "
                    "given as a tensor"
                )
            self._indices = range(len(indices))
        return iterate(self)

    with (
        mock.patch.object(_Subsample, "sample", sampled),
        mock.patch.object(IndepMessenger, "__iter__", counted),
    ):
        yield


def _unchecked(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def _is_number(number: int) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, int | float) and x == number


def _common_scale(scales: list[Any]) -> Any:
    """The scale that all enumerated sites share: one number, or the same tensor."""
    if len({s if isinstance(s, int | float) else id(s) for s in scales}) != 1:
        raise UntraceableError(
            "enumerated sites under scales that are different tensors"
        )
    return scales[0]


_compute_expectation = Dice.compute_expectation


def _expectation(dice: Any, costs: Any) -> Any:
    """Sets costs of probability zero, which may be infinite, to zero.

    Pyro leaves them out, which the fixed shapes of a graph do not allow.
    """

    def kept(values: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, values, 0.0)

    def not_known(mask: Tensor, *args: Any) -> bool:
        if args:
            raise UntraceableError(
                "Tensor.all of a dimension, within the expectation of an enumerated ELBO"
            )
        return False

    with (
        mock.patch.object(torch.Tensor, "masked_select", kept),
        mock.patch.object(torch.Tensor, "all", not_known),
    ):
        return _compute_expectation(dice, costs)


_construct_baseline = tracegraph_elbo._construct_baseline


def _without_baseline(
    node: Any,
    guide_site: Any,
    downstream_cost: Any,
) -> Any:
    if guide_site["infer"].get("baseline"):
        raise UntraceableError(f"the baseline of {node!r}, which Pyro keeps in Python")
    return _construct_baseline(node, guide_site, downstream_cost)
