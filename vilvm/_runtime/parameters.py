"""The parameters and networks of a model, kept in the model itself, not in Pyro's global store.

Within ``module_parameters(lvm)`` the module `lvm` answers every parameter statement. Any handler
may surround a ``pyro.param``, but all of them reach Pyro's store; so the store asks `lvm`, and not
a handler. A network that ``pyro.module`` announces, or that is a PyroModule, is added to `lvm` if
it is not part of it. From then on it is in ``modules()``, ``parameters()`` and ``state_dict()``,
and follows ``train()``, ``eval()`` and ``to()``.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro.nn.module import _Context
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.nn import Module, Parameter

from vilvm._runtime.deferred_loading import (
    check_complete,
    check_shape,
    is_loading,
    load_deferred,
    loading_autoguides,
)
from vilvm._runtime.errors import ContractError
from vilvm._runtime.evaluation_mode import join_evaluation
from vilvm._runtime.held_modules import module_on_the_stack
from vilvm._runtime.submodules import NETWORKS, PARAMS, add_network, key, params_of
from vilvm._runtime.threads import one_thread

__all__ = ["module_parameters"]


@contextmanager
def module_parameters(lvm: object, frozen: bool = False) -> Iterator[None]:
    """A context in which the module `lvm` answers every parameter statement.

    Pyro's global store is not touched.

    Arguments:
        lvm: the latent variable model.
        frozen: whether a new parameter or network is an error, in this and in inner contexts.

    Raises:
        BusyError: another thread is running a model, or draws from generators that it has seeded.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.lvm import module_parameters
        >>> lvm = torch.nn.Module()
        >>> with module_parameters(lvm):
        ...     scale = pyro.param("scale", torch.tensor(2.0))
        >>> [name for name, _ in lvm.named_parameters()]
        ['pyro_params.scale']
    """
    with ExitStack() as stack:
        stack.enter_context(one_thread())
        frozen = frozen or any(s.frozen and _holds(s.lvm, lvm) for s in _SERVING)
        serving = _Serving(lvm, frozen)
        if not _SERVING:
            stack.enter_context(_asking_store())
        _SERVING.append(serving)
        stack.callback(_SERVING.remove, serving)
        if is_loading(lvm):
            stack.enter_context(loading_autoguides(lvm))
        stack.enter_context(serving)
        yield


def _holds(outer: object, lvm: object) -> bool:
    """Whether `lvm` is `outer` or a part of it."""
    if outer is lvm:
        return True
    return isinstance(outer, Module) and any(part is lvm for part in outer.modules())


class _AskingStore(ParamStoreDict):
    """Pyro's store while a model runs: it asks the model for the values of parameters."""

    def setdefault(
        self, name: str, init_constrained_value: Any, constraint: Any = constraints.real
    ) -> Tensor:
        return _SERVING[-1].answer(name, init_constrained_value, constraint)

    def __getitem__(self, name: str) -> Tensor:
        for serving in reversed(_SERVING):
            if name in _declared(serving.lvm):
                return serving.value(name)
        return super().__getitem__(name)


@contextmanager
def _asking_store() -> Iterator[None]:
    """A context in which Pyro's store asks the model.

    Every PyroModule keeps its own parameters, even if it was made before.
    """
    store: Any = pyro.get_param_store()
    state: Any = cached_property(lambda _: {"params": {}, "constraints": {}})
    state.__set_name__(_Context, "param_state")
    context: Any = _Context
    with pyro.settings.context(module_local_params=True):
        store.__class__, context.param_state = _AskingStore, state
        try:
            yield
        finally:
            store.__class__ = ParamStoreDict
            del context.param_state


class _Serving(Messenger):
    """Answers the parameter statements of one model, and adds to it the networks that run."""

    def __init__(self, lvm: Any, frozen: bool):
        super().__init__()
        self.lvm, self.frozen = lvm, frozen
        self._known: set[int] = set()

    def answer(self, name: str, init: Any, constraint: Any) -> Tensor:
        """The value of a parameter; its first statement adds it to the model."""
        if isinstance(init, Parameter) and constraint is constraints.real:
            if self._knows(init) or self._joined(name, init):
                return init  # unchanged: pyro.module would replace any other object
        self._declare(name, init, constraint)
        return self.value(name)

    def value(self, name: str) -> Tensor:
        """The constrained value of a declared parameter."""
        stored = getattr(self.lvm, PARAMS)[key(name)]
        return _with_unconstrained(
            transform_to(_declared(self.lvm)[name])(stored), stored
        )

    def _declare(self, name: str, init: Any, constraint: Any) -> None:
        if not isinstance(self.lvm, Module):
            raise ContractError(
                f"pyro.param({name!r}) has no module that can hold it: make "
                f"{type(self.lvm).__name__} a torch.nn.Module, or wrap its functions as "
                "vilvm.Pair(model, guide)."
            )
        declared = _declared(self.lvm)
        _check_no_twin(name, declared)
        store = params_of(self.lvm)
        if key(name) not in store:
            self._check_not_frozen(f"pyro.param({name!r})", "declare every parameter")
            check_complete(self.lvm, f"pyro.param({name!r})")
            store[key(name)] = _unconstrained(init, constraint)
        elif name not in declared:
            made = _unconstrained(init, constraint)
            check_shape(f"{PARAMS}.{key(name)}", store[key(name)], made)
        declared[name] = constraint

    def _check_not_frozen(self, what: str, remedy: str) -> None:
        if self.frozen:
            raise ContractError(
                f"{what} appeared after training began, so the optimizer does not know it; "
                f"{remedy} on the first call."
            )

    def _pyro_param(self, msg: Any) -> None:
        """Gives a network's parameter the attribute ``unconstrained``, which Pyro's SVI reads."""
        init = next(iter(msg["args"][1:]), None)
        if _SERVING[-1] is not self or not isinstance(init, Parameter):
            return
        if self._knows(init) and _is_captured():
            msg["value"], msg["done"] = _with_unconstrained(init, init), True

    def _pyro_post_param(self, msg: Any) -> None:
        if _SERVING[-1] is not self:
            return
        leaf = value = msg["value"]
        if hasattr(value, "unconstrained"):
            leaf = value.unconstrained()
        if (
            isinstance(leaf, Parameter)
            and isinstance(self.lvm, Module)
            and not self._knows(leaf)
        ):
            self._joined(msg["name"], leaf)
        msg["value"] = _in_plate_order(value, leaf, msg["kwargs"].get("event_dim"))

    def _knows(self, parameter: Parameter) -> bool:
        """Whether a parameter belongs to the model."""
        if id(parameter) not in self._known and isinstance(self.lvm, Module):
            self._known = {id(p) for p in self.lvm.parameters()}
        return id(parameter) in self._known

    def _joined(self, name: str, parameter: Parameter) -> bool:
        """Adds the running module that has this parameter to the model, if there is one."""
        module = module_on_the_stack(parameter, self.lvm)
        if module is None or not isinstance(self.lvm, Module):
            return False
        label, announced, _ = name.partition("$$$")
        if not announced:
            label = module.__dict__.get("_pyro_name") or type(module).__name__
        self._check_not_frozen(
            f"The network {label!r}", "use or announce every network (pyro.module)"
        )
        load_deferred(self.lvm, f"{NETWORKS}.{key(label)}.", module)
        add_network(self.lvm, label, module)
        join_evaluation(self.lvm, module)
        return True


_SERVING: list[_Serving] = []  # innermost last


def _check_no_twin(name: str, declared: dict[str, Any]) -> None:
    twins = [n for n in declared if key(n) == key(name)]
    if twins and name not in declared:
        raise ContractError(
            f"pyro.param({twins[0]!r}) and pyro.param({name!r}) would be one parameter of the "
            "module; rename one of them."
        )


def _in_plate_order(value: Tensor, leaf: Tensor, event_dim: int | None) -> Tensor:
    """Indexes a parameter by the index of every plate around it that permutes its data.

    Pyro does so for a plate that selects some of its data, but not for a plate that only permutes
    them.
    """
    if event_dim is None:
        return value
    for plate in [p for p in _PYRO_STACK if isinstance(p, SubsampleMessenger)]:
        index: Any = plate._indices
        dim = (plate.dim or 0) - event_dim
        if not _is_whole(index, plate.size):
            continue
        if value.dim() >= -dim > 0 and value.shape[dim] == plate.size:
            value = value.index_select(dim, index.to(value.device))
            # Pyro's subsampling sets the same attribute
            value._pyro_unconstrained_param = leaf  # type: ignore[attr-defined]
    return value


def _is_whole(index: Any, size: int) -> bool:
    """Whether a plate's index is an integer tensor as long as its data."""
    return (
        isinstance(index, Tensor)
        and not index.is_floating_point()
        and index.shape == (size,)
    )


def _is_captured() -> bool:
    """Whether a handler collects parameters to train them, as ``pyro.infer.SVI`` does."""
    return any(getattr(handler, "param_only", False) for handler in _PYRO_STACK)


def _with_unconstrained(value: Tensor, stored: Parameter) -> Tensor:
    """The value with a reference to its unconstrained parameter, as in Pyro's own store."""
    # a view, since a parameter with such an attribute cannot be pickled
    value = value.view_as(value)
    value.unconstrained = lambda: stored  # type: ignore[attr-defined]
    return value


def _declared(lvm: Any) -> dict[str, Any]:
    """The constraint of every parameter that a statement has declared in this model."""
    return getattr(lvm, "__dict__", {}).setdefault("_pyro_constraints", {})


def _unconstrained(init: Any, constraint: Any) -> Parameter:
    if isinstance(init, Parameter) and constraint is constraints.real:
        return init
    with torch.no_grad():
        value: Any = init
        if callable(init):
            value = init()
        return Parameter(transform_to(constraint).inv(value.detach()).clone())
