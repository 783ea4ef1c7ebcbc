"""The errors for unusable latent variable models; ``vilvm.lvm`` exports all of them."""

__all__ = ["BusyError", "ContractError", "NonFiniteError", "NotApplicable"]


class ContractError(ValueError):
    """A model, guide or batch breaks the contract; the message states what, where and the remedy.

    Examples:
        >>> import torch, vilvm
        >>> try:
        ...     vilvm.evaluate((), torch.zeros(3, 2))
        ... except vilvm.ContractError as error:
        ...     print(error)
        Got a tuple in place of a latent variable model; write vilvm.Pair(model, guide).
    """


class NonFiniteError(ContractError):
    """A log-density or parameter is NaN or infinite; the message names it and the datum."""


class NotApplicable(ContractError):
    """A method does not apply to this model; the message states why, and what to use instead."""


class BusyError(RuntimeError):
    """Another thread of this process is running a model; the message states what to do."""
