"""Pairs and data of the bad inputs, and the comparison of results."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO

import vilvm

__all__ = [
    "ChangedLoss",
    "drawing",
    "fitted",
    "guide",
    "model",
    "pair",
    "quiet",
    "rows_of_data",
    "same",
    "shared_model",
]

# fields of results that differ between equal runs
_CLOCKS = {"seconds", "compile_seconds", "data_per_second", "chunk"}


def model(x: Any) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def drawing(x: Any = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x: Any) -> None:
    slope = pyro.param("slope", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.7).to_event(1))


def pair() -> Any:
    return vilvm.Pair(model, guide)


def shared_model(x: Any) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean * torch.ones(2), 1.0).to_event(1), obs=x)


class ChangedLoss:
    """An objective that applies `change` to a correct loss."""

    def __init__(self, change: Callable[[Any], Any]):
        self.change = change

    def differentiable_loss(self, model: Any, guide: Any, *args: Any) -> Any:
        return self.change(Trace_ELBO().differentiable_loss(model, guide, *args))

    def loss(self, model: Any, guide: Any, *args: Any) -> Any:
        return Trace_ELBO().loss(model, guide, *args)


@cache
def rows_of_data(rows: int = 8) -> torch.Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))


def fitted(**options: Any) -> Any:
    fitted = vilvm.fit(**options)
    return (
        fitted.steps,
        [p.detach().clone() for p in options["lvm"].parameters()],
        fitted.history["elbo"],
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def same(found: Any, plain: Any) -> bool:
    """Whether two results are equal, except for measured times."""
    first, second = (_numbers(value) for value in (found, plain))
    return first == second


def _numbers(value: Any) -> Any:
    """All numbers of a result, in nested lists that can be compared."""
    value = _plain(value)
    if isinstance(value, Mapping):
        return {key: _numbers(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(v) for v in value]
    return _number(value)


def _plain(value: Any) -> Any:
    """Tensors, arrays, modules and dataclasses as lists and dicts; other values as they are."""
    if isinstance(value, torch.Tensor):
        numbers = value.detach().double().nan_to_num(nan=-1.5)
        return (tuple(value.shape), numbers.flatten().tolist())
    if isinstance(value, np.ndarray):
        return (value.shape, np.nan_to_num(value.astype(float)).ravel().tolist())
    if isinstance(value, torch.nn.Module):
        return list(value.state_dict().values())
    if hasattr(value, "__dataclass_fields__"):
        fields = [key for key in value.__dataclass_fields__ if key not in _CLOCKS]
        return {key: getattr(value, key) for key in fields}
    return value


def _number(value: Any) -> Any:
    """A number as a float (None for NaN), a string, or the name of another type."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bool | int | float | np.generic):
        return type(value).__name__
    if value != value:
        return None
    return float(value)
