"""The errors by which a pair is refused; all are exported by ``vilvm.lvm``."""

__all__ = ["BusyError", "ContractError", "NonFiniteError", "NotApplicable"]


class ContractError(ValueError):
    """A model, guide or batch breaks the contract; the message says what, where, and what to do."""


class NonFiniteError(ContractError):
    """A log-density or a parameter of a distribution is NaN or infinite; the message says which,
    and where.
    """


class NotApplicable(ContractError):
    """A question has no meaning for this pair, in which nothing is wrong; the message says why,
    and what applies instead.
    """


class BusyError(RuntimeError):
    """Another thread of this process is running a pair; the message says what to do."""
