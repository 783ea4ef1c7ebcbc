"""What a user gives stays as it was: a model, a transform or a callback that writes into it is
refused.

A run on data that change under it has another answer at every pass, and says nothing. torch counts
the writes into every tensor, and a view shares the count of its base, so a look at the counts
finds them; only what is written through NumPy it does not see.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.errors import ContractError

__all__ = ["Unchanged", "not_seeded"]


class Unchanged:
    """Remembers how often tensors were written into.

    Arguments:
        named: tensors by the expression that picks them; what is no tensor, or counts no writes,
            is left out.
    """

    def __init__(self, named: Iterable[tuple[str, Any]]):
        self._known = [
            (name, t, t._version)
            for name, t in named
            if isinstance(t, Tensor) and not t.is_inference()
        ]

    def check(self, who: str, what: str = "its batch") -> None:
        """Raises ContractError, which says that `who` did it, if one of the tensors was written
        into since.
        """
        for name, tensor, version in self._known:
            if tensor._version != version:
                raise ContractError(
                    f"{who} changes {what} in place ({name}), and so the data themselves: compute "
                    "a new tensor (x = x + 1, not x += 1 or "
                    f"x.add_(1)), or work on {name}.clone(); then load the data anew."
                )


_SEED = (
    # bytes at the start of the state of torch's generator on the CPU: the seed it was given, which
    # no draw depends on any more
    8
)


@contextmanager
def not_seeded(part: str, lvm: object) -> Iterator[None]:
    """Refuses a run, of this part of `lvm`, that seeds torch's generators: all its runs would draw
    the same, and no error be seen.

    Meanwhile the generator has another seed to its name, while its draws go on as they would;
    whoever seeds it takes that name away.

    Raises:
        ContractError: the part has seeded them.
    """
    before = torch.get_rng_state()
    marked = before.clone()
    marked[:_SEED] ^= 0x5A
    torch.set_rng_state(marked)
    name = torch.initial_seed()
    seeded = False
    try:
        yield
        seeded = torch.initial_seed() != name
    finally:
        after = before if seeded else torch.get_rng_state()
        after[:_SEED] = before[:_SEED]
        torch.set_rng_state(after)
    if seeded:
        raise ContractError(
            f"The {part} of {type(lvm).__name__} seeds torch's generators (torch.manual_seed), so "
            "that all its runs draw the same: leave it out, "
            "and give the seed to fit and evaluate (seed=...)."
        )
