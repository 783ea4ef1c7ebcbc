"""The contract: what a latent variable model is, and whose parameters it has.

A latent variable model is any object with two Pyro callables:

- ``model(batch)`` is the joint density p(x | z) p(z): it samples every latent and observes the batch
  (``pyro.sample(..., obs=batch)``);
- ``guide(batch)`` is the approximate posterior q(z | x): it samples every latent of the model, under the same name.

Data that are independent given shared quantities stand in a plate, ``with pyro.plate("data", len(batch))``; the density of
each datum is then kept apart, and everything vilvm says is said per datum. A ``torch.nn.Module`` with these two methods is
the usual form; ``Pair`` makes one of two plain functions.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from pyro.infer.autoguide.guides import AutoGuide
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.distributions import constraints, transform_to

from vilvm.data import Data, as_data

__all__ = [
    "ContractError",
    "LatentVariableModel",
    "NonFiniteError",
    "NotApplicable",
    "Pair",
    "check_contract",
    "device_of",
    "evaluation_mode",
    "fixed_beside",
    "module_parameters",
]

_PARAMS = "pyro_params"  # the submodule of a model in which its pyro.param statements live


class ContractError(ValueError):
    """A model, guide or batch breaks the contract; the message says what, where, and what to do."""


class NonFiniteError(ContractError):
    """A log-density or a parameter of a distribution is NaN or infinite; the message says which, and where."""


class NotApplicable(ContractError):
    """What was asked for has no meaning for this pair, in which nothing is wrong; the message says why, and what applies instead."""


@runtime_checkable
class LatentVariableModel(Protocol):
    """Two Pyro callables: ``model(batch)``, which is p(x | z) p(z), and ``guide(batch)``, which is q(z | x)."""

    def model(self, batch: Any, /) -> Any: ...

    def guide(self, batch: Any, /) -> Any: ...


class Pair(torch.nn.Module):
    """A latent variable model made of two callables, which may be plain functions, modules or Pyro autoguides.

    Parameters that the functions declare with ``pyro.param`` or ``pyro.module`` become parameters of this module, not of
    Pyro's global store. So do those of the module whose method `model` or `guide` is.

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
                raise ContractError(f"Pair: the {name} is a {type(part).__name__}, which cannot be called with a batch.")
        owners = {id(o): o for o in (getattr(f, "__self__", None) for f in (model, guide)) if isinstance(o, torch.nn.Module)}
        self.owners = torch.nn.ModuleList(owners.values())
        self.model = model
        self.guide = guide


def check_contract(lvm: object) -> None:
    """Raises ContractError unless `lvm` has a callable ``model`` and a callable ``guide``."""
    if isinstance(lvm, tuple):
        raise ContractError("Got a tuple in place of a latent variable model; write vilvm.Pair(model, guide).")
    for name in ("model", "guide"):
        if not callable(getattr(lvm, name, None)):
            raise ContractError(
                f"{type(lvm).__name__} has no method {name}(batch); a latent variable model has both model(batch) and guide(batch)."
            )


def device_of(lvm: object, default: torch.device | str = "cpu") -> torch.device:
    """Where the parameters of a model are; `default` if it has none."""
    parameters = lvm.parameters() if isinstance(lvm, torch.nn.Module) else iter(())
    return next((p.device for p in parameters), torch.device(default))


def fixed_beside(lvm: object, data: Any, seed: int = 0) -> Data:
    """The data, checked, where the model is, after their transform, drawn once from `seed`."""
    given = as_data(data)
    return given.to(device_of(lvm, given.device)).fixed(seed)


class _LocalParams(Messenger):
    """Answers ``pyro.param`` statements from the model's own module, so that Pyro's global store stays empty."""

    def __init__(self, lvm: Any, frozen: bool):
        super().__init__()
        self.lvm, self.frozen = lvm, frozen
        self.added: set[str] = set()
        self.known = {id(p) for p in lvm.parameters()} if isinstance(lvm, torch.nn.Module) else set()

    def _pyro_param(self, msg: Any) -> None:
        if msg["done"]:  # by a model within this one
            return
        name, *init = msg["args"]
        if not init:
            if name in self._declared():  # else a PyroModule announces a parameter of its own
                msg["value"], msg["done"] = self._value(name), True
            return
        constraint = msg["kwargs"].get("constraint", constraints.real)
        # The parameter of a network is handed back as it is: pyro.module and PyroModule would put anything else in its place.
        of_network = isinstance(init[0], torch.nn.Parameter) and constraint is constraints.real
        if not (of_network and id(init[0]) in self.known):
            self._own(name, init[0], constraint)
        msg["value"], msg["done"] = init[0] if of_network else self._value(name), True

    def _declared(self) -> dict[str, Any]:
        """The constraint of every parameter that a statement has declared in this model."""
        return getattr(self.lvm, "__dict__", {}).setdefault("_pyro_constraints", {})

    def _own(self, name: str, init: Any, constraint: Any) -> None:
        if not isinstance(self.lvm, torch.nn.Module):
            raise ContractError(
                f"pyro.param({name!r}) has no module to live in: make {type(self.lvm).__name__} a torch.nn.Module, "
                "or wrap its functions as vilvm.Pair(model, guide)."
            )
        if getattr(self.lvm, _PARAMS, None) is None:
            self.lvm.add_module(_PARAMS, torch.nn.ParameterDict())
        store = getattr(self.lvm, _PARAMS)
        if _key(name) not in store:
            if self.frozen:
                raise ContractError(
                    f"pyro.param({name!r}) appeared after training began, so the optimizer does not know it; "
                    "declare every parameter on the first call."
                )
            store[_key(name)] = _unconstrained(init, constraint)
            self.added.add(name)
        self._declared()[name] = constraint

    def forget_doubles(self) -> None:
        """Drops what has turned out to be the parameter of a part that a PyroModule made while it ran."""
        store = getattr(self.lvm, _PARAMS, None)
        if store is None or not self.added:
            return
        elsewhere = {id(p) for n, p in self.lvm.named_parameters(remove_duplicate=False) if not n.startswith(f"{_PARAMS}.")}
        for name in self.added:
            if id(store[_key(name)]) in elsewhere:
                del store[_key(name)], self._declared()[name]
        self.added.clear()

    def _value(self, name: str) -> Tensor:
        stored = getattr(self.lvm, _PARAMS)[_key(name)]
        value = transform_to(self._declared()[name])(stored)
        value = value.view_as(value)  # the parameter itself must not carry what follows, which no pickle could hold
        value.unconstrained = lambda: stored  # type: ignore[attr-defined]  # as Pyro's own store does
        return value


def _key(name: str) -> str:
    return name.replace(".", "/")  # a module's parameter names may hold no dot


def _unconstrained(init: Any, constraint: Any) -> torch.nn.Parameter:
    if isinstance(init, torch.nn.Parameter) and constraint is constraints.real:
        return init  # pyro.module hands over the parameters of a network: these, not copies, are trained
    with torch.no_grad():
        value: Any = init() if callable(init) else init
        return torch.nn.Parameter(transform_to(constraint).inv(value.detach()).clone())


@contextmanager
def module_parameters(lvm: object, frozen: bool = False) -> Iterator[None]:
    """Within it, every parameter statement of the pair is served by the module `lvm` itself; no global store is touched.

    Arguments:
        lvm: the latent variable model.
        frozen: whether a parameter that has not been met before is an error; so it is too within a context that says so.
    """
    frozen = frozen or any(isinstance(m, _LocalParams) and m.frozen and _holds(m.lvm, lvm) for m in _PYRO_STACK)
    with pyro.settings.context(module_local_params=True), _LocalParams(lvm, frozen) as serve, ExitStack() as stack:
        stack.callback(serve.forget_doubles)
        for part in lvm.modules() if isinstance(lvm, torch.nn.Module) else ():
            # Pyro gives a module this state only if the setting above was on when the module was made.
            if isinstance(part, PyroModule) and not hasattr(part._pyro_context, "param_state"):
                part._pyro_context.param_state = {"params": {}, "constraints": {}}
            if isinstance(part, AutoGuide) and part.prototype_trace is None:
                stack.enter_context(_served_within(part, _LocalParams(lvm, frozen)))
        yield


def _holds(outer: object, lvm: object) -> bool:
    """Whether a model is another one, or within it."""
    return outer is lvm or (isinstance(outer, torch.nn.Module) and any(part is lvm for part in outer.modules()))


@contextmanager
def _served_within(guide: AutoGuide, serve: _LocalParams) -> Iterator[None]:
    """An autoguide looks at its model behind a block, through which only a handler of the model's own is heard."""
    names = [n for n in ("_model", "_original_model") if isinstance(guide.__dict__.get(n), tuple)]
    models = {n: guide.__dict__[n] for n in names}
    for name, (model,) in models.items():
        setattr(guide, name, (serve(model),))
    try:
        yield
    finally:
        for name in names:
            if guide.__dict__.get(name) is not None:
                setattr(guide, name, models[name])


class evaluation_mode:
    """A context in which a module is in evaluation mode (dropout off, batch statistics frozen), every part restored after."""

    def __init__(self, lvm: object):
        self.parts = [(m, m.training) for m in lvm.modules()] if isinstance(lvm, torch.nn.Module) else []

    def __enter__(self) -> None:
        for part, _ in self.parts:
            part.training = False

    def __exit__(self, *exc: Any) -> None:
        for part, training in self.parts:
            part.training = training
