"""Evaluation mode of a model, as a context."""

from typing import Any

from torch.nn import Module

from vilvm._runtime.threads import one_thread

__all__ = ["evaluation_mode", "join_evaluation"]


class evaluation_mode:
    """A context in which a module is in evaluation mode (dropout off, batch statistics frozen).

    The mode of every submodule is restored afterwards. A network that is added to the model within
    the context is also set to evaluation mode.

    Arguments:
        lvm: the model; one that is not a ``torch.nn.Module`` has no mode.

    Raises:
        BusyError: another thread is running a model.

    Examples:
        >>> import torch
        >>> from vilvm.lvm import evaluation_mode
        >>> network = torch.nn.Dropout()
        >>> with evaluation_mode(network):
        ...     network.training
        False
        >>> network.training
        True
    """

    def __init__(self, lvm: object):
        self.parts: list[tuple[Module, bool]] = []
        if isinstance(lvm, Module):
            self.parts = [(m, m.training) for m in lvm.modules()]
        self._alone = one_thread()

    def __enter__(self) -> None:
        self._alone.__enter__()
        for part, _ in self.parts:
            part.training = False
        _OPEN.append(self)

    def __exit__(self, *exc: Any) -> None:
        _OPEN.remove(self)
        for part, training in self.parts:
            part.training = training
        self._alone.__exit__()

    def _join(self, lvm: object, network: Module) -> bool:
        """Adds a new network of `lvm`; returns whether `lvm` is in this context."""
        of_lvm = [training for part, training in self.parts if part is lvm]
        if of_lvm:
            self.parts += [(m, m.training and of_lvm[0]) for m in network.modules()]
            for part in network.modules():
                part.training = False
        return bool(of_lvm)


_OPEN: list[evaluation_mode] = []


def join_evaluation(lvm: Module, network: Module) -> None:
    """Gives a network that was added to `lvm` the mode of `lvm`, now and after its contexts."""
    joined = [mode._join(lvm, network) for mode in _OPEN]
    if not any(joined) and not lvm.training:
        network.eval()
