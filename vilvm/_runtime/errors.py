"""The errors that refuse a latent variable model; ``vilvm.lvm`` exports all of them."""

__all__ = ["BusyError", "ContractError", "NonFiniteError", "NotApplicable"]


class ContractError(ValueError):
    """A model, guide or batch breaks the contract; the message says what, where and the remedy.

    Example:
        >>> import torch, vilvm
        >>> try:
        ...     vilvm.evaluate((), torch.zeros(3, 2))
        ... except vilvm.ContractError as error:
        ...     print(error)
        Got a tuple in place of a latent variable model; write vilvm.Pair(model, guide).
    """


class NonFiniteError(ContractError):
    """A log-density or a distribution's parameter is NaN or infinite; the message says which one,
    and at which datum.
    """


class NotApplicable(ContractError):
    """A question has no meaning for this model; the message says why, and what applies instead."""


class BusyError(RuntimeError):
    """Another thread of this process is running a model; the message says what to do."""
