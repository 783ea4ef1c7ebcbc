"""Whose parameters and modules a pair has: its own, and none of Pyro's global store.

Within ``module_parameters(lvm)`` every parameter statement is answered from the module `lvm`. A
``pyro.param`` ends in Pyro's store, behind whatever handlers and blocks stand around it; so it is
the store that is made to ask `lvm`, and no handler. A network that is announced by
``pyro.module``, or that is a PyroModule, and is not part of `lvm` yet, joins it: from then on it
is in ``modules()``, ``parameters()`` and ``state_dict()``, and follows ``train()``, ``eval()`` and
``to()``.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro.infer.autoguide.guides import AutoGuide
from pyro.nn.module import _Context
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.nn import Module, Parameter

from vilvm._runtime.errors import ContractError
from vilvm._runtime.held_modules import module_on_the_stack
from vilvm._runtime.threads import one_thread

__all__ = [
    "add_network",
    "evaluation_mode",
    "keep_for_later",
    "kept",
    "module_parameters",
    "own_memory",
    "own_networks",
]

_PARAMS = "pyro_params"  # the submodule of a model in which its pyro.param statements live,
_MODULES = "pyro_modules"  # and that of the networks which join it


@contextmanager
def module_parameters(lvm: object, frozen: bool = False) -> Iterator[None]:
    """Within it, every parameter statement is answered by the module `lvm` itself; no global store
    is touched.

    Arguments:
        lvm: the latent variable model.
        frozen: whether a parameter or network that has not been met before is an error; so it is
            too within a context that says so.

    Raises:
        BusyError: another thread is within it, or draws from generators that it has seeded.
    """
    with ExitStack() as stack:
        stack.enter_context(one_thread())
        frozen = frozen or any(s.frozen and _holds(s.lvm, lvm) for s in _SERVING)
        serving = _Serving(lvm, frozen)
        if not _SERVING:
            stack.enter_context(_store_that_asks())
        _SERVING.append(serving)
        stack.callback(_SERVING.remove, serving)
        if _waiting(lvm):
            stack.enter_context(_autoguides_that_load(lvm))
        stack.enter_context(serving)
        yield


def _holds(outer: object, lvm: object) -> bool:
    """Whether a model is another one, or within it."""
    return outer is lvm or (
        isinstance(outer, Module) and any(part is lvm for part in outer.modules())
    )


class _AskingStore(ParamStoreDict):
    """Pyro's store while a model is served: a statement with an initial value, and one that names
    a parameter, are the model's.
    """

    def setdefault(
        self, name: str, init_constrained_value: Any, constraint: Any = constraints.real
    ) -> Tensor:
        return _SERVING[-1].answer(name, init_constrained_value, constraint)

    def __getitem__(self, name: str) -> Tensor:
        known = next((s for s in reversed(_SERVING) if name in _declared(s.lvm)), None)
        return super().__getitem__(name) if known is None else known.value(name)


@contextmanager
def _store_that_asks() -> Iterator[None]:
    """Pyro's store asks the model, and every PyroModule keeps its own parameters, even one made
    before this was asked of it.
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
    """Answers for one model; as a handler it hears of modules at work that are not part of it."""

    def __init__(self, lvm: Any, frozen: bool):
        super().__init__()
        self.lvm, self.frozen = lvm, frozen
        self._known: set[int] = set()

    # What the store asks
    # -------------------------------------------------------------------------------------------------

    def answer(self, name: str, init: Any, constraint: Any) -> Tensor:
        """The value of a parameter, which becomes the model's at its first statement."""
        if (
            isinstance(init, Parameter)
            and constraint is constraints.real
            and (self._knows(init) or self._joined(name, init))
        ):
            return init  # as it is: pyro.module would put anything else in its place
        self._own(name, init, constraint)
        return self.value(name)

    def value(self, name: str) -> Tensor:
        """The constrained value of a parameter that a statement has declared."""
        stored = getattr(self.lvm, _PARAMS)[_key(name)]
        return _with_unconstrained(transform_to(_declared(self.lvm)[name])(stored), stored)

    def _own(self, name: str, init: Any, constraint: Any) -> None:
        if not isinstance(self.lvm, Module):
            raise ContractError(
                f"pyro.param({name!r}) has no module to live in: make {type(self.lvm).__name__} a "
                "torch.nn.Module, "
                "or wrap its functions as vilvm.Pair(model, guide)."
            )
        declared = _declared(self.lvm)
        twin = (
            None
            if name in declared
            else next((n for n in declared if _key(n) == _key(name)), None)
        )
        if twin is not None:
            raise ContractError(
                f"pyro.param({twin!r}) and pyro.param({name!r}) would be one parameter of the "
                "module; rename one of them."
            )
        store = _submodule(self.lvm, _PARAMS, torch.nn.ParameterDict)
        if _key(name) not in store:
            if self.frozen:
                raise ContractError(
                    f"pyro.param({name!r}) appeared after training began, so the optimizer does "
                    "not know it; "
                    "declare every parameter on the first call."
                )
            store[_key(name)] = _unconstrained(init, constraint)
        elif name not in declared:
            _check_loaded(
                f"{_PARAMS}.{_key(name)}", store[_key(name)], _unconstrained(init, constraint)
            )
        declared[name] = constraint

    # What it hears
    # -------------------------------------------------------------------------------------------------------

    def _pyro_param(self, msg: Any) -> None:
        """Pyro's SVI reads ``unconstrained`` of every parameter, which that of a network does not
        have.
        """
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        if (
            _SERVING[-1] is self
            and isinstance(init, Parameter)
            and self._knows(init)
            and _is_captured()
        ):
            msg["value"], msg["done"] = _with_unconstrained(init, init), True

    def _pyro_post_param(self, msg: Any) -> None:
        if _SERVING[-1] is not self:
            return
        value = msg["value"]
        leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        if isinstance(leaf, Parameter) and isinstance(self.lvm, Module) and not self._knows(leaf):
            self._joined(msg["name"], leaf)
        msg["value"] = _in_order(value, leaf, msg["kwargs"].get("event_dim"))

    def _knows(self, parameter: Parameter) -> bool:
        """Whether a parameter is the model's."""
        if id(parameter) not in self._known and isinstance(self.lvm, Module):
            self._known = {id(p) for p in self.lvm.parameters()}
        return id(parameter) in self._known

    def _joined(self, name: str, parameter: Parameter) -> bool:
        """Whether the module with this parameter is at work, and so has joined the model."""
        module = module_on_the_stack(parameter, self.lvm)
        if module is None or not isinstance(self.lvm, Module):
            return False
        label = (
            name.split("$$$")[0]
            if "$$$" in name
            else module.__dict__.get("_pyro_name") or type(module).__name__
        )
        if self.frozen:
            raise ContractError(
                f"The network {label!r} appeared after training began, so the optimizer does not "
                "know it; "
                "use or announce every network (pyro.module) on the first call."
            )
        _load_waiting(self.lvm, f"{_MODULES}.{_key(label)}.", module)
        add_network(self.lvm, label, module)
        joined = [mode.join(self.lvm, module) for mode in _EVALUATING]
        if not any(joined) and not self.lvm.training:
            module.eval()
        return True


def _in_order(value: Tensor, leaf: Tensor, event_dim: int | None) -> Tensor:
    """A parameter in the order of the indices of the plates around it. Pyro applies these if they
    are fewer than all, and not to all in another order."""
    if event_dim is None:
        return value
    for plate in [p for p in _PYRO_STACK if isinstance(p, SubsampleMessenger)]:
        index, dim = plate._indices, (plate.dim or 0) - event_dim
        if (
            not isinstance(index, Tensor)
            or index.is_floating_point()
            or index.shape != (plate.size,)
        ):
            continue
        if value.dim() >= -dim > 0 and value.shape[dim] == plate.size:
            value = value.index_select(dim, index.to(value.device))
            value._pyro_unconstrained_param = leaf  # type: ignore[attr-defined]  # as a plate that subsamples leaves it
    return value


_SERVING: list[_Serving] = []  # innermost last


def _is_captured() -> bool:
    """Whether someone collects the parameters of a run to train them, as ``pyro.infer.SVI`` does."""
    return any(getattr(handler, "param_only", False) for handler in _PYRO_STACK)


def _with_unconstrained(value: Tensor, stored: Parameter) -> Tensor:
    """A value with a reference to its unconstrained parameter, as Pyro's own store gives it."""
    # the parameter itself must not carry what follows, which no pickle could hold
    value = value.view_as(value)
    value.unconstrained = lambda: stored  # type: ignore[attr-defined]
    return value


def _declared(lvm: Any) -> dict[str, Any]:
    """The constraint of every parameter that a statement has declared in this model."""
    return getattr(lvm, "__dict__", {}).setdefault("_pyro_constraints", {})


def _key(name: str) -> str:
    return name.replace(".", "/")  # a module's parameter names may hold no dot


def _unconstrained(init: Any, constraint: Any) -> Parameter:
    if isinstance(init, Parameter) and constraint is constraints.real:
        return init
    with torch.no_grad():
        value: Any = init() if callable(init) else init
        return Parameter(transform_to(constraint).inv(value.detach()).clone())


def _submodule(lvm: Module, name: str, kind: type[Module]) -> Any:
    if getattr(lvm, name, None) is None:
        lvm.add_module(name, kind())
    return getattr(lvm, name)


def add_network(lvm: Module, name: str, network: Module) -> None:
    """Makes a network part of a model, under `name` if that is free.

    Networks within it that were added before leave.
    """
    networks = _submodule(lvm, _MODULES, torch.nn.ModuleDict)
    within = {id(m) for m in network.modules()}
    for other in [n for n, m in networks.items() if id(m) in within]:
        del networks[other]
    free = _key(name) or "network"
    while free in networks or hasattr(networks, free):
        free += "_"
    networks[free] = network
    _originals(lvm)[free] = network


class _Originals(dict[str, Module]):
    """The networks that a model's functions hold, by their name in the model: the same ones in
    every copy of the model, for a function is not copied."""

    def __deepcopy__(self, memo: Any) -> "_Originals":
        return self

    def __reduce__(self) -> Any:  # another process has others
        return _Originals, ()


def _originals(lvm: Any) -> _Originals:
    return lvm.__dict__.setdefault("_originals", _Originals())


@contextmanager
def own_networks(lvm: Module) -> Iterator[None]:
    """Within it, the networks that the functions of a copied model hold have the state of the
    copy's own networks.
    """
    own = getattr(lvm, _MODULES, {})
    lent = [(o, own[n]) for n, o in _originals(lvm).items() if n in own and own[n] is not o]
    before = []
    for original, copied in lent:
        parts = dict(copied.named_modules())
        before += [
            (part, vars(part), parts[n]) for n, part in original.named_modules() if n in parts
        ]
    for part, _, copied in before:
        # the very dict, so that what is set here is set in the copy
        object.__setattr__(part, "__dict__", vars(copied))
    try:
        yield
    finally:
        for part, state, _ in before:
            object.__setattr__(part, "__dict__", state)


def own_memory(lvm: Module) -> None:
    """Gives every entry of every parameter and buffer memory of its own, for a step writes into
    it.

    Entries of an expanded tensor share theirs. The parameters of an autoguide may lie where
    constants of the model do: those that ``init_to_mean`` makes of Normal(loc, 1) are loc itself,
    and a step would move both.
    """
    of_autoguides = {
        id(p) for m in lvm.modules() if isinstance(m, AutoGuide) for p in m.parameters()
    }
    for tensor in (*lvm.parameters(), *lvm.buffers()):
        overlaps = any(
            stride == 0 and size > 1
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        if overlaps or id(tensor) in of_autoguides:
            tensor.data = tensor.detach().clone()


# Loading before the first call
# -------------------------------------------------------------------------------------------


def keep_for_later(lvm: Module, state: dict[str, Any], prefix: str) -> None:
    """Takes out of a state_dict what `lvm` has no place for until it is first called, and keeps
    it; makes its ``pyro.param`` now.

    Arguments:
        lvm: the model that loads.
        state: the state_dict, from which what is kept is removed.
        prefix: what the keys of `lvm` begin with.
    """
    present = {name for name in lvm.state_dict() if name not in _waiting(lvm)}
    unset = [
        n + "."
        for n, m in lvm.named_modules()
        if isinstance(m, AutoGuide) and m.prototype_trace is None
    ]
    for key in [
        k for k in state if k.startswith(prefix) and k.removeprefix(prefix) not in present
    ]:
        name = key.removeprefix(prefix)
        if name.startswith(f"{_PARAMS}."):
            value = state[key].detach().clone()
            _submodule(lvm, _PARAMS, torch.nn.ParameterDict)[name.removeprefix(f"{_PARAMS}.")] = (
                Parameter(value)
            )
        elif name.startswith((f"{_MODULES}.", *unset)):
            lvm.__dict__.setdefault("_waiting", {})[name] = state.pop(key).detach().clone()


def kept(lvm: Module) -> dict[str, Tensor]:
    """What ``keep_for_later`` has kept, by its name in a state_dict."""
    return dict(_waiting(lvm))


def _waiting(lvm: object) -> dict[str, Tensor]:
    """What was loaded before there was a place for it, by name."""
    return getattr(lvm, "__dict__", {}).get("_waiting", {})


def _check_loaded(name: str, loaded: Tensor, made: Tensor) -> None:
    if loaded.shape != made.shape:
        raise ContractError(
            f"{name!r} has shape {tuple(made.shape)} here, and {tuple(loaded.shape)} in the "
            "state_dict that was loaded: "
            "load that of a model of the same sizes."
        )


def _load_waiting(lvm: Any, prefix: str, module: Module) -> None:
    """Loads into a part that has just come about what was kept for it."""
    waiting = _waiting(lvm)
    loaded = {n.removeprefix(prefix): v for n, v in waiting.items() if n.startswith(prefix)}
    if not loaded:
        return
    made = module.state_dict()
    for name in sorted(made.keys() ^ loaded.keys()):
        where = "in the state_dict that was loaded" if name in made else "here"
        raise ContractError(
            f"{prefix + name!r} is not {where}: load the state_dict of a model of the same parts."
        )
    for name, value in loaded.items():
        _check_loaded(prefix + name, value, made[name])
    module.load_state_dict(loaded)
    for name in loaded:
        del waiting[prefix + name]


@contextmanager
def _autoguides_that_load(lvm: Any) -> Iterator[None]:
    """An autoguide takes what was loaded as soon as it has made its parameters, and before it is
    used.
    """
    guides = {
        n: m
        for n, m in lvm.named_modules()
        if isinstance(m, AutoGuide) and m.prototype_trace is None
    }
    # else by a context around this one
    unset = {n: m for n, m in guides.items() if "_setup_prototype" not in vars(m)}
    for name, guide in unset.items():
        object.__setattr__(guide, "_setup_prototype", _setup_and_load(lvm, f"{name}.", guide))
    try:
        yield
    finally:
        for guide in unset.values():
            object.__delattr__(guide, "_setup_prototype")


def _setup_and_load(lvm: Any, prefix: str, guide: Any) -> Any:
    def setup(*args: Any, **kwargs: Any) -> None:
        type(guide)._setup_prototype(guide, *args, **kwargs)
        if guide.__dict__.get("transform", ...) is None:  # a flow is made on first use
            guide.get_posterior()
        try:
            _load_waiting(lvm, prefix, guide)
        except ContractError:
            # so that the next call says so again, and none runs on other values
            guide.prototype_trace = None
            raise

    return setup


class evaluation_mode:
    """A context in which a module is in evaluation mode (dropout off, batch statistics frozen),
    every part restored after.

    A network that joins the model within it goes into evaluation mode too.
    """

    def __init__(self, lvm: object):
        self.parts = [(m, m.training) for m in lvm.modules()] if isinstance(lvm, Module) else []
        self._alone = one_thread()

    def __enter__(self) -> None:
        self._alone.__enter__()
        for part, _ in self.parts:
            part.training = False
        _EVALUATING.append(self)

    def __exit__(self, *exc: Any) -> None:
        _EVALUATING.remove(self)
        for part, training in self.parts:
            part.training = training
        self._alone.__exit__()

    def join(self, lvm: object, network: Module) -> bool:
        """Puts a network that has joined `lvm` into evaluation mode, until `lvm` leaves it;
        whether `lvm` is in this context.
        """
        of_lvm = [training for part, training in self.parts if part is lvm]
        if of_lvm:
            self.parts += [(m, m.training and of_lvm[0]) for m in network.modules()]
            for part in network.modules():
                part.training = False
        return bool(of_lvm)


_EVALUATING: list[evaluation_mode] = []
