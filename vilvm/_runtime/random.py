"""The states and seeds of torch's generators."""

from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_seed
from vilvm._runtime.threads import one_thread

__all__ = ["preserved_rng", "rng_state", "seeded", "set_rng_state", "set_seed"]


def preserved_rng(device: torch.device | str) -> Any:
    """A context after which torch's generators, of the CPU and of `device`, are as they were."""
    where = torch.device(device)
    return torch.random.fork_rng(devices=[where] if where.type == "cuda" else [])


def rng_state(device: torch.device) -> list[Tensor]:
    """The states of torch's generators, the CPU's first."""
    return [
        torch.get_rng_state(),
        *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else []),
    ]


def set_rng_state(states: list[Tensor], device: torch.device) -> None:
    """Puts torch's generators where ``rng`` found them."""
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu(), device)


class seeded:
    """A context in which torch draws from `seed`, on the CPU and on `device`; the generators are
    as before afterwards.

    Raises:
        BusyError: another thread is within it, or runs a pair.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.seed, self.device = check_seed("seed", seed), torch.device(device)
        self._fork, self._alone = preserved_rng(self.device), one_thread()

    def __enter__(self) -> None:
        self._alone.__enter__()
        self._fork.__enter__()
        set_seed(self.seed, self.device)

    def __exit__(self, *exc: Any) -> None:
        self._fork.__exit__(*exc)
        self._alone.__exit__()


def set_seed(seed: int, device: torch.device) -> None:
    """Seeds torch's generators of the CPU and of `device`, and no other's."""
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
