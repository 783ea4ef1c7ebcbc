"""The contract of a latent variable model.

A latent variable model is any object with two Pyro callables:

- ``model(batch)`` is the joint density p(x | z) p(z): it samples every latent and observes the
  batch (``pyro.sample(..., obs=batch)``);
- ``guide(batch)`` is the approximate posterior q(z | x): it samples every latent of the model,
  under the same name.

Data that are independent given shared quantities are in a plate, ``with pyro.plate("data",
len(batch))``; then vilvm keeps the density of each datum separate and reports every result per
datum.

The usual form is a ``torch.nn.Module`` with these two methods. ``Pair`` makes such a module from
two plain functions, and ``Wrapped`` is the base class of a model around another model.
"""

import copy
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from pyro.infer.autoguide.guides import AutoGuide

from vilvm._runtime.deferred_loading import defer_loading, deferred_state
from vilvm._runtime.errors import (
    BusyError,
    ContractError,
    NonFiniteError,
    NotApplicable,
)
from vilvm._runtime.evaluation_mode import evaluation_mode
from vilvm._runtime.held_modules import held_modules
from vilvm._runtime.parameters import module_parameters
from vilvm._runtime.rebuildable import rebuildable
from vilvm._runtime.submodules import add_network, own_memory, own_networks
from vilvm.data._column_names import (
    check_columns,
    column_names,
    set_columns,
    training_columns,
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
    "data_beside",
    "device_of",
    "dtype_of",
    "evaluation_mode",
    "fixed_beside",
    "held_modules",
    "model_of",
    "module_parameters",
    "own_memory",
    "rebuildable",
    "training_tensors",
]


@runtime_checkable
class LatentVariableModel(Protocol):
    """Two Pyro callables: ``model(batch)`` is p(x | z) p(z), and ``guide(batch)`` is q(z | x).

    Examples:
        >>> import vilvm
        >>> from vilvm.models.vae import VAE
        >>> isinstance(VAE(data_dim=6, latent_dim=2), vilvm.LatentVariableModel)
        True
    """

    def model(self, batch: Any, /) -> Any: ...

    def guide(self, batch: Any, /) -> Any: ...


# methods of autoguides that need their parameters
_OF_PARAMETERS = {
    "get_base_dist",
    "get_posterior",
    "get_transform",
    "laplace_approximation",
    "median",
    "quantiles",
    "sample_latent",
}


class Pair(torch.nn.Module):
    """A latent variable model made of two callables: functions, modules or Pyro autoguides.

    Parameters that the functions declare with ``pyro.param`` become parameters of this module, not
    of Pyro's global store. The same holds for the networks that they announce with
    ``pyro.module``, and those that they refer to in closures, defaults, ``functools.partial``,
    globals that their code names, lists and dicts of these, or bound methods. All of them are
    trained (freeze one with ``network.requires_grad_(False)``) and follow ``train()``, ``eval()``
    and ``to()``.

    ``lvm.model`` and ``lvm.guide`` are the two callables with these parameters. Every Pyro tool
    accepts them: ``pyro.infer.Predictive(lvm.model, guide=lvm.guide, num_samples=100)``.

    Arguments:
        model: p(x | z) p(z), called with a batch.
        guide: q(z | x), called with a batch.

    Raises:
        ContractError: the model or guide cannot be called.

    Examples:
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
        bound_to = [getattr(f, "__self__", None) for f in (model, guide)]
        owners = {id(o): o for o in bound_to if isinstance(o, torch.nn.Module)}
        self.owners = torch.nn.ModuleList(owners.values())
        self.model = model
        self.guide = guide

    def _set_part(self, name: str, part: Any) -> None:
        """Sets the model or the guide, and adds the networks that it refers to."""
        self._modules.pop(name, None)
        self.__dict__.pop(f"_{name}", None)
        if isinstance(part, torch.nn.Module) and type(part) is not _Part:
            self._modules[name] = part
        else:
            self.__dict__[f"_{name}"] = part
        parts = {
            n: getattr(self, n).__wrapped__
            for n in ("model", "guide")
            if n in self._modules or f"_{n}" in self.__dict__
        }
        if len(parts) == 2:
            self._add_networks(parts)

    def _add_networks(self, parts: dict[str, Any]) -> None:
        known = {id(m) for m in self.modules()}
        for label, network in held_modules(**parts).items():
            if id(network) not in known:
                add_network(self, label, network)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("model", "guide"):
            # torch's __setattr__ would register a module and skip the property
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def model(self) -> Any:
        """p(x | z) p(z), with the parameters of this pair."""
        return _Part(self, "model")

    @model.setter
    def model(self, part: Any) -> None:
        self._set_part("model", part)

    @property
    def guide(self) -> Any:
        """q(z | x), with the parameters of this pair; an autoguide keeps its attributes."""
        return _Part(self, "guide")

    @guide.setter
    def guide(self, part: Any) -> None:
        self._set_part("guide", part)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        defer_loading(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _save_to_state_dict(
        self, destination: Any, prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update(
            {prefix + n: value for n, value in deferred_state(self).items()}
        )

    def __deepcopy__(self, memo: Any) -> "Pair":
        """A pair of the same functions with its own copies of the parameters."""
        guides = [
            (g, g.__dict__["_model"], g.master)
            for g in self.modules()
            if isinstance(g, AutoGuide)
        ]
        new = memo[id(self)] = type(self).__new__(type(self))
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        # Pyro removes the model from both autoguides, the copied one and the copy
        for guide, model, master in guides:
            guide._model, guide.master = model, master
            memo[id(guide)]._model = copy.deepcopy(model, memo)
        return new


class _Part:
    """The model or guide of a pair: a proxy that runs the callable with the pair's parameters."""

    def __init__(self, lvm: Pair, name: str):
        object.__setattr__(self, "__self__", lvm)
        object.__setattr__(self, "_name", name)

    @property
    def __wrapped__(self) -> Any:
        lvm = object.__getattribute__(self, "__self__")
        name = object.__getattribute__(self, "_name")
        if name in lvm._modules:
            return lvm._modules[name]
        return lvm.__dict__[f"_{name}"]

    # so that isinstance(lvm.guide, AutoGuide) holds
    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
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
                if name in _OF_PARAMETERS:
                    self._create_parameters(name, args)
                return value(*args, **kwargs)

        return method

    def _create_parameters(self, name: str, batch: tuple[Any, ...]) -> None:
        """Calls an autoguide once that has no parameters yet, so that it creates or loads them."""
        guide = self.__wrapped__
        if not isinstance(guide, AutoGuide) or guide.prototype_trace is not None:
            return
        if name == "quantiles":
            batch = batch[1:]
        if not batch:
            raise ContractError(
                f"{type(guide).__name__}.{name}: an autoguide has parameters from its first call "
                "on; call lvm.guide(batch) once."
            )
        with torch.no_grad(), pyro.poutine.block():
            guide(*batch)

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
        if type(other) is not _Part:
            return False
        return (self.__self__, self._name) == (other.__self__, other._name)

    def __hash__(self) -> int:
        return hash((id(self.__self__), self._name))

    def __reduce__(self) -> Any:
        return _Part, (self.__self__, self._name)


def model_of(model: Any, caller: str) -> Callable[[Any], Any]:
    """The model of an object that has one, or the model itself.

    Arguments:
        model: a Pyro model, or an object with a method ``model``, such as a pair.
        caller: for errors.

    Raises:
        ContractError: it is neither.

    Examples:
        >>> from vilvm.lvm import model_of
        >>> from vilvm.models.vae import VAE
        >>> lvm = VAE(data_dim=6, latent_dim=2)
        >>> model_of(lvm, "here") == lvm.model
        True
    """
    runs = callable(model)
    if isinstance(model, torch.nn.Module):
        runs = type(model).forward is not torch.nn.Module.forward
    # a network may be an attribute named "model" of a module that is the model
    if hasattr(model, "model") and (hasattr(model, "guide") or not runs):
        model = model.model
    if not callable(model):
        raise ContractError(
            f"{caller}: the model, of type {type(model).__name__}, cannot be called with the "
            "data; pass a Pyro model, such as a function of the data, or vilvm.Pair(model, guide)."
        )
    return model


def check_contract(lvm: object) -> None:
    """Checks that `lvm` has a callable ``model`` and a callable ``guide``.

    Arguments:
        lvm: any object.

    Raises:
        ContractError: `lvm` lacks one of them.

    Examples:
        >>> from vilvm.lvm import check_contract
        >>> from vilvm.models.vae import VAE
        >>> check_contract(VAE(data_dim=6, latent_dim=2))
    """
    if isinstance(lvm, tuple):
        raise ContractError(
            "Got a tuple in place of a latent variable model; write vilvm.Pair(model, guide)."
        )
    for name in ("model", "guide"):
        if not callable(getattr(lvm, name, None)):
            raise ContractError(
                f"{type(lvm).__name__} has no method {name}(batch); a latent variable model has "
                f"both model(batch) and guide(batch).{_inner_hint(lvm)}"
            )


def _inner_hint(found: object) -> str:
    """Where the pair is, for a result in its place."""
    inner = getattr(found, "lvm", None)
    if not hasattr(inner, "model"):
        return ""
    if hasattr(found, "draws"):
        return " Pass its .lvm, the approximation; its .verdict judges its draws."
    return " Pass its .lvm."


def device_of(lvm: object, default: torch.device | str = "cpu") -> torch.device:
    """The device of a model's parameters.

    Arguments:
        lvm: the model.
        default: the device of a model without parameters.

    Returns:
        The device of the first parameter, or `default`.

    Examples:
        >>> import torch
        >>> from vilvm.lvm import device_of
        >>> device_of(torch.nn.Linear(2, 3))
        device(type='cpu')
    """
    if isinstance(lvm, torch.nn.Module):
        for parameter in lvm.parameters():
            return parameter.device
    return torch.device(default)


def dtype_of(lvm: object) -> torch.dtype:
    """The type of a model's numbers.

    Arguments:
        lvm: the model.

    Returns:
        That of the first parameter of floating-point type; torch's default if there is none.

    Examples:
        >>> import torch
        >>> from vilvm.lvm import dtype_of
        >>> dtype_of(torch.nn.Linear(2, 3).double())
        torch.float64
    """
    if isinstance(lvm, torch.nn.Module):
        for parameter in lvm.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return torch.get_default_dtype()


def data_beside(lvm: object, data: Any, what: str = "data") -> Data:
    """The data, checked; floats of other libraries get the type of the model's numbers.

    If the model was trained on data with names of columns, the data must have the same.

    Arguments:
        lvm: the model.
        data: anything that ``vilvm.data.as_data`` converts.
        what: the name of the argument, for messages.

    Returns:
        The data, where they are.

    Raises:
        ValueError: see ``vilvm.data.as_data``; or the columns are not those of the training data.

    Examples:
        >>> import numpy, torch
        >>> from vilvm.lvm import data_beside
        >>> data_beside(torch.nn.Linear(2, 3).double(), numpy.zeros((4, 2))).x.dtype
        torch.float64
    """
    checked = as_data(data, what, dtype=dtype_of(lvm))
    check_columns(checked, training_columns(lvm), what)
    return checked


def training_tensors(
    lvm: object, data: Any, what: str, *, dtype: torch.dtype | None = None
) -> Any:
    """The tensors of data from which a model is set anew, and whose columns it keeps.

    Arguments:
        lvm: the model.
        data: anything that ``vilvm.data.as_data`` converts.
        what: the name of the argument, for messages.
        dtype: of floats that are not tensors; by default that of the model's numbers.

    Returns:
        The tensors as a model is called with them.

    Raises:
        ValueError: see ``vilvm.data.as_data``.

    Examples:
        >>> import pandas, torch
        >>> from vilvm.lvm import training_tensors
        >>> training_tensors(torch.nn.Linear(2, 3), pandas.DataFrame({"a": [1, 2]}), "x").shape
        torch.Size([2, 1])
    """
    checked = as_data(data, what, dtype=dtype or dtype_of(lvm)).loaded().fixed()
    set_columns(lvm, column_names(checked))
    return checked.x


def fixed_beside(lvm: object, data: Any, seed: int = 0) -> Data:
    """The data on the model's device, checked, their transform applied once.

    Arguments:
        lvm: the model.
        data: anything that ``vilvm.data.as_data`` converts.
        seed: of the transform's draws.

    Returns:
        The data, which are the same in every pass.

    Raises:
        ValueError: see ``vilvm.data.as_data``.

    Examples:
        >>> import torch
        >>> from vilvm.data import Data, DynamicBinarisation
        >>> from vilvm.lvm import fixed_beside
        >>> data = Data(torch.full((4, 2), 0.5), transform=DynamicBinarisation())
        >>> fixed_beside(torch.nn.Linear(2, 3), data).x.unique()
        tensor([0., 1.])
    """
    checked = data_beside(lvm, data)
    return checked.to(device_of(lvm, checked.device)).fixed(seed)


class Wrapped(torch.nn.Module):
    """The base class of a model around another model, `lvm`.

    A subclass defines ``model`` and ``guide`` by ``inner_model`` and ``inner_guide``, which use
    the parameters (``pyro.param``) of the inner model and add none to the outer one.

    Arguments:
        lvm: the inner model, a ``torch.nn.Module``.
        frozen: whether a new parameter of the inner model is an error.

    Raises:
        ContractError: `lvm` is not a latent variable model, or not a ``torch.nn.Module``.

    Examples:
        >>> import pyro, torch, vilvm
        >>> from vilvm.lvm import Wrapped
        >>> from vilvm.models.ppca import PPCA
        >>> class Tempered(Wrapped):
        ...     def model(self, batch):
        ...         with pyro.poutine.scale(scale=0.5):
        ...             return self.inner_model(batch)
        ...     def guide(self, batch):
        ...         return self.inner_guide(batch)
        >>> lvm, x = Tempered(PPCA(3, 1)), torch.zeros(4, 3)
        >>> vilvm.log_weights(lvm, x, num_samples=5).log_weight.shape
        torch.Size([5, 4])
    """

    lvm: Any
    # whether p(x, z) and the evidence are those of the inner model
    keeps_model = False
    # whether q(z | x) has the parameters of the inner guide and applies only to the same data
    keeps_guide = True

    def __init__(self, lvm: Any, frozen: bool = False):
        super().__init__()
        check_contract(lvm)
        if not isinstance(lvm, torch.nn.Module):
            raise ContractError(
                f"{type(lvm).__name__} is not a torch.nn.Module, as a wrapper needs; make it one, "
                "or wrap it as vilvm.Pair(model, guide)."
            )
        self.lvm, self._frozen = lvm, frozen

    def inner_model(self, batch: Any, **arguments: Any) -> Any:
        """Runs p(x | z) p(z) of the inner model, with its arguments after the batch."""
        with module_parameters(self.lvm, self._frozen):
            return self.lvm.model(batch, **arguments)

    def inner_guide(self, batch: Any, **arguments: Any) -> Any:
        """Runs q(z | x) of the inner model, with its arguments after the batch."""
        with module_parameters(self.lvm, self._frozen):
            return self.lvm.guide(batch, **arguments)
