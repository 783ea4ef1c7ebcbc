"""The two errors by which a pair is refused; both are exported by ``vilvm.lvm``."""

__all__ = ["ContractError", "NotApplicable"]


class ContractError(ValueError):
    """A model, guide or batch breaks the contract; the message says what, where, and what to do."""


class NotApplicable(ContractError):
    """A question has no meaning for this pair, in which nothing is wrong; the message says why, and what applies instead."""
