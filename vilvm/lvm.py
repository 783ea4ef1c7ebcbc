"""The contract: what a latent variable model is, and whose parameters it has.

A latent variable model is any object with two Pyro callables:

- ``model(batch)`` is the joint density p(x | z) p(z): it samples every latent and observes the
  batch (``pyro.sample(..., obs=batch)``);
- ``guide(batch)`` is the approximate posterior q(z | x): it samples every latent of the model,
  under the same name.

Data that are independent given shared quantities stand in a plate, ``with pyro.plate("data",
len(batch))``; the density of each datum is then kept apart, and everything vilvm says is said per
datum. A ``torch.nn.Module`` with these two methods is the usual form; ``Pair`` makes one of two
plain functions.
"""

import copy
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.infer.autoguide.guides import AutoGuide

from vilvm._runtime.errors import BusyError, ContractError, NonFiniteError, NotApplicable
from vilvm._runtime.held_modules import held_modules
from vilvm._runtime.parameters import (
    add_network,
    evaluation_mode,
    keep_for_later,
    kept,
    module_parameters,
    own_memory,
    own_networks,
)
from vilvm.data.data import Data, as_data

__all__ = [
    "BusyError",
    "ContractError",
    "LatentVariableModel",
    "NonFiniteError",
    "NotApplicable",
    "Pair",
    "Wrapped",
    "check_contract",
    "device_of",
    "evaluation_mode",
    "fixed_beside",
    "held_modules",
    "module_parameters",
    "own_memory",
]


@runtime_checkable
class LatentVariableModel(Protocol):
    """Two Pyro callables: ``model(batch)``, which is p(x | z) p(z), and ``guide(batch)``, which is
    q(z | x).
    """

    def model(self, batch: Any, /) -> Any: ...

    def guide(self, batch: Any, /) -> Any: ...


class Pair(torch.nn.Module):
    """A latent variable model made of two callables, which may be plain functions, modules or Pyro
    autoguides.

    Parameters that the functions declare with ``pyro.param`` become parameters of this module, not
    of Pyro's global store. So do the networks that they announce with ``pyro.module``, and those
    that they hold: in closures, defaults, ``functools.partial``, globals that their code names,
    lists and dicts of these, or behind a method. All of them are trained (freeze one by
    ``network.requires_grad_(False)``) and follow ``train()``, ``eval()`` and ``to()``.

    ``lvm.model`` and ``lvm.guide`` are the two callables with these parameters: any Pyro tool may
    be given them, as in ``pyro.infer.Predictive(lvm.model, guide=lvm.guide, num_samples=100)``.

    Arguments:
        model: p(x | z) p(z), called with a batch.
        guide: q(z | x), called with a batch.

    Example:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))
        >>> lvm = vilvm.Pair(model, guide)
        >>> vilvm.log_weights(lvm, torch.zeros(3), num_samples=5).log_weight.shape
        torch.Size([5, 3])
    """

    def __init__(self, model: Callable[[Any], Any], guide: Callable[[Any], Any]):
        super().__init__()
        for name, part in (("model", model), ("guide", guide)):
            if not callable(part):
                raise ContractError(
                    f"Pair: the {name} is a {type(part).__name__}, which cannot be called with a "
                    "batch."
                )
        owners = {
            id(o): o
            for o in (getattr(f, "__self__", None) for f in (model, guide))
            if isinstance(o, torch.nn.Module)
        }
        self.owners = torch.nn.ModuleList(owners.values())
        self.model = model
        self.guide = guide

    def _take(self, name: str, part: Any) -> None:
        """Makes a callable the model or the guide, and the networks that it holds part of the
        pair.
        """
        self._modules.pop(name, None)
        self.__dict__.pop(f"_{name}", None)
        if isinstance(part, torch.nn.Module) and type(part) is not _Half:
            self._modules[name] = part
        else:
            self.__dict__[f"_{name}"] = part
        parts = {
            n: getattr(self, n).__wrapped__
            for n in ("model", "guide")
            if n in self._modules or f"_{n}" in self.__dict__
        }
        if len(parts) == 2:
            mine = {id(m) for m in self.modules()}
            for label, network in held_modules(**parts).items():
                if id(network) not in mine:
                    add_network(self, label, network)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("model", "guide"):
            # and not torch's, which registers a module and asks no property
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def model(self) -> Any:
        """p(x | z) p(z), with the parameters of this pair."""
        return _Half(self, "model")

    @model.setter
    def model(self, part: Any) -> None:
        self._take("model", part)

    @property
    def guide(self) -> Any:
        """q(z | x), with the parameters of this pair; an autoguide has its attributes and methods
        here too.
        """
        return _Half(self, "guide")

    @guide.setter
    def guide(self, part: Any) -> None:
        self._take("guide", part)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        keep_for_later(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: value for name, value in kept(self).items()})

    def __deepcopy__(self, memo: Any) -> "Pair":
        """A pair of the same functions with parameters of its own."""
        guides = [
            (g, g.__dict__["_model"], g.master) for g in self.modules() if isinstance(g, AutoGuide)
        ]
        new = memo[id(self)] = type(self).__new__(type(self))
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        # a copied autoguide loses its model, and so does the one that is copied
        for guide, model, master in guides:
            guide._model, guide.master = model, master
            memo[id(guide)]._model = copy.deepcopy(model, memo)
        return new


class _Half:
    """Model or guide of a pair: the callable itself to whoever looks at it, and called with the
    parameters of the pair.
    """

    def __init__(self, lvm: Pair, name: str):
        object.__setattr__(self, "__self__", lvm)
        object.__setattr__(self, "_name", name)

    @property
    def __wrapped__(self) -> Any:
        lvm, name = (
            object.__getattribute__(self, "__self__"),
            object.__getattribute__(self, "_name"),
        )
        return lvm._modules[name] if name in lvm._modules else lvm.__dict__[f"_{name}"]

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # so that isinstance(lvm.guide, AutoGuide) holds
        return type(self.__wrapped__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with module_parameters(self.__self__), own_networks(self.__self__):
            return self.__wrapped__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__wrapped__, name)
        if getattr(value, "__self__", None) is not self.__wrapped__:
            return value

        def method(*args: Any, **kwargs: Any) -> Any:
            with module_parameters(self.__self__), own_networks(self.__self__):
                return value(*args, **kwargs)

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__wrapped__, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self.__wrapped__[key]

    def __iter__(self) -> Any:
        return iter(self.__wrapped__)

    def __len__(self) -> int:
        return len(self.__wrapped__)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return repr(self.__wrapped__)

    def __eq__(self, other: object) -> bool:
        return type(other) is _Half and (self.__self__, self._name) == (
            other.__self__,
            other._name,
        )

    def __hash__(self) -> int:
        return hash((id(self.__self__), self._name))

    def __reduce__(self) -> Any:
        return _Half, (self.__self__, self._name)


def check_contract(lvm: object) -> None:
    """Raises ContractError unless `lvm` has a callable ``model`` and a callable ``guide``."""
    if isinstance(lvm, tuple):
        raise ContractError(
            "Got a tuple in place of a latent variable model; write vilvm.Pair(model, guide)."
        )
    for name in ("model", "guide"):
        if not callable(getattr(lvm, name, None)):
            raise ContractError(
                f"{type(lvm).__name__} has no method {name}(batch); a latent variable model has "
                "both model(batch) and guide(batch)."
            )


def device_of(lvm: object, default: torch.device | str = "cpu") -> torch.device:
    """Where the parameters of a model are; `default` if it has none."""
    parameters = lvm.parameters() if isinstance(lvm, torch.nn.Module) else iter(())
    return next((p.device for p in parameters), torch.device(default))


def fixed_beside(lvm: object, data: Any, seed: int = 0) -> Data:
    """The data, checked, where the model is, after their transform, drawn once from `seed`."""
    given = as_data(data)
    return given.to(device_of(lvm, given.device)).fixed(seed)


class Wrapped(torch.nn.Module):
    """A model around another one, `lvm`; a subclass writes `model` and `guide` with the two
    methods below.

    They run those of the inner model with the parameters that live in it (``pyro.param``), not
    with new ones of the outer model's.

    Arguments:
        lvm: the model within; a ``torch.nn.Module``.
        frozen: whether a parameter that the inner model has not met before is an error.

    Raises:
        ContractError: `lvm` is no latent variable model, or no module.
    """

    lvm: Any
    keeps_model = False  # whether p(x, z) is that of the inner model, so that its evidence is too
    # whether q(z | x) has the parameters of the inner guide, so that it serves no other data than
    # that does
    keeps_guide = True

    def __init__(self, lvm: Any, frozen: bool = False):
        super().__init__()
        check_contract(lvm)
        if not isinstance(lvm, torch.nn.Module):
            raise ContractError(
                f"{type(lvm).__name__} is no torch.nn.Module, which is needed here; make it one, "
                "or wrap it as vilvm.Pair(model, guide)."
            )
        self.lvm, self._frozen = lvm, frozen

    def inner_model(self, batch: Any, **arguments: Any) -> Any:
        """Runs p(x | z) p(z) of the inner model, with what it takes behind the batch."""
        with module_parameters(self.lvm, self._frozen):
            return self.lvm.model(batch, **arguments)

    def inner_guide(self, batch: Any, **arguments: Any) -> Any:
        """Runs q(z | x) of the inner model, with what it takes behind the batch."""
        with module_parameters(self.lvm, self._frozen):
            return self.lvm.guide(batch, **arguments)
