"""The submodules that a model gains when it runs: its ``pyro.param`` values and its networks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor
from torch.nn import Module

__all__ = [
    "NETWORKS",
    "PARAMS",
    "add_network",
    "key",
    "own_memory",
    "own_networks",
    "params_of",
]

# the submodules that hold the values of pyro.param statements, and the added networks
PARAMS, NETWORKS = "pyro_params", "pyro_modules"


def key(name: str) -> str:
    """The name of a parameter or network within a module, which may contain no dot."""
    return name.replace(".", "/")


def params_of(lvm: Module) -> torch.nn.ParameterDict:
    """The submodule of ``pyro.param`` values, created if missing."""
    return _submodule(lvm, PARAMS, torch.nn.ParameterDict)


def _submodule(lvm: Module, name: str, kind: type[Module]) -> Any:
    if getattr(lvm, name, None) is None:
        lvm.add_module(name, kind())
    return getattr(lvm, name)


def add_network(lvm: Module, name: str, network: Module) -> None:
    """Adds a network to a model, under `name` if that is free.

    Networks that were added before and are submodules of this one are removed.
    """
    networks = _submodule(lvm, NETWORKS, torch.nn.ModuleDict)
    within = {id(m) for m in network.modules()}
    for other in [n for n, m in networks.items() if id(m) in within]:
        del networks[other]
    free = key(name) or "network"
    while free in networks or hasattr(networks, free):
        free += "_"
    networks[free] = network
    _originals(lvm)[free] = network


class _Originals(dict[str, Module]):
    """The networks that a model's functions refer to, by their name in the model.

    All copies of the model share this dict, since a copied function refers to the same networks.
    """

    def __deepcopy__(self, memo: Any) -> "_Originals":
        return self

    def __reduce__(self) -> Any:  # another process has other networks
        return _Originals, ()


def _originals(lvm: Any) -> _Originals:
    return lvm.__dict__.setdefault("_originals", _Originals())


@contextmanager
def own_networks(lvm: Module) -> Iterator[None]:
    """A context in which a copied model's functions use the state of the copy's own networks."""
    own = getattr(lvm, NETWORKS, {})
    lent = [
        (o, own[n]) for n, o in _originals(lvm).items() if n in own and own[n] is not o
    ]
    before = []
    for original, copied in lent:
        parts = dict(copied.named_modules())
        before += [
            (part, vars(part), parts[n])
            for n, part in original.named_modules()
            if n in parts
        ]
    for part, _, copied in before:
        # the same dict, so that an attribute set here is set in the copy
        object.__setattr__(part, "__dict__", vars(copied))
    try:
        yield
    finally:
        for part, state, _ in before:
            object.__setattr__(part, "__dict__", state)


def own_memory(lvm: Module) -> None:
    """Gives every parameter and buffer of a model its own memory.

    An optimizer writes into that memory. The entries of an expanded tensor share it, and an
    autoguide's parameter may share it with a constant of the model: for Normal(loc, 1),
    ``init_to_mean`` returns loc itself.

    Arguments:
        lvm: the model.

    Examples:
        >>> import torch
        >>> from vilvm.lvm import own_memory
        >>> model = torch.nn.Module()
        >>> model.register_buffer("scale", torch.ones(1).expand(3))
        >>> own_memory(model)
        >>> model.scale.stride()
        (1,)
    """
    of_autoguides = {
        id(p) for m in lvm.modules() if isinstance(m, AutoGuide) for p in m.parameters()
    }
    for tensor in (*lvm.parameters(), *lvm.buffers()):
        if _overlaps(tensor) or id(tensor) in of_autoguides:
            tensor.data = tensor.detach().clone()


def _overlaps(tensor: Tensor) -> bool:
    """Whether entries of a tensor share memory."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return any(stride == 0 and size > 1 for size, stride in steps)
