"""Detects a model, transform or callback that changes a user's data in place, or seeds torch.

If the data change during a run, every pass has another result, without an error. torch counts the
writes into every tensor, and a view shares the count of its base. A comparison of the counts
detects all writes except those through NumPy.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.errors import ContractError

__all__ = ["Unchanged", "not_seeded"]


class Unchanged:
    """The write counts of some tensors, to be compared later.

    Arguments:
        named: pairs of the expression that picks a tensor, and the tensor; objects without a
            write count are left out.
    """

    def __init__(self, named: Iterable[tuple[str, Any]]):
        self._known = [
            (name, t, t._version)
            for name, t in named
            if isinstance(t, Tensor) and not t.is_inference()
        ]

    def check(self, who: str, what: str = "its batch") -> None:
        """Raises ContractError, which names `who`, if a tensor was written into since."""
        for name, tensor, version in self._known:
            if tensor._version != version:
                raise ContractError(
                    f"{who} changes {what} in place ({name}), which changes the data: compute "
                    "a new tensor (x = x + 1, not x += 1 or x.add_(1)), or work on "
                    f"{name}.clone(); then load the data anew."
                )


# The first bytes of the state of torch's CPU generator hold its seed, which does not affect
# further draws.
_SEED_BYTES = 8


@contextmanager
def not_seeded(part: str, lvm: object) -> Iterator[None]:
    """A context that raises if the model or guide seeds torch's generators within it.

    A model that seeds them would draw the same numbers in every run, without an error. The context
    changes the seed that the generator reports, which does not affect its draws; seeding within
    the context overwrites that mark.

    Arguments:
        part: "model" or "guide", for the message.
        lvm: the model.

    Raises:
        ContractError: the generators were seeded.
    """
    before = torch.get_rng_state()
    marked = before.clone()
    marked[:_SEED_BYTES] ^= 0x5A
    torch.set_rng_state(marked)
    mark = torch.initial_seed()
    seeded = False
    try:
        yield
        seeded = torch.initial_seed() != mark
    finally:
        after = torch.get_rng_state()
        if seeded:
            after = before
        after[:_SEED_BYTES] = before[:_SEED_BYTES]
        torch.set_rng_state(after)
    if seeded:
        raise ContractError(
            f"The {part} of {type(lvm).__name__} seeds torch's generators (torch.manual_seed), so "
            "all its runs draw the same numbers: remove this, and give the seed to fit and "
            "evaluate (seed=...)."
        )
