"""The states and seeds of torch's generators.

A seed starts another stream for each purpose, and none is that of ``torch.manual_seed``. One
stream for two purposes would be silently wrong: a guide is a little better on the noise that it
was trained with, so an ELBO evaluated on this noise is too high.
"""

import hashlib
from typing import Any, Literal

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_seed
from vilvm._runtime.threads import one_thread

__all__ = ["preserved_rng", "rng_state", "seeded", "set_rng_state", "set_seed"]

Purpose = Literal["estimates", "simulation", "training", "transform"]


def preserved_rng(device: torch.device | str) -> Any:
    """A context that restores torch's generators, of the CPU and of `device`, at its end."""
    gpus = [d for d in [torch.device(device)] if d.type == "cuda"]
    return torch.random.fork_rng(devices=gpus)


def rng_state(device: torch.device) -> list[Tensor]:
    """The states of torch's generators: the CPU's, then that of `device` if it is a GPU."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_rng_state(states: list[Tensor], device: torch.device) -> None:
    """Restores the states that ``rng_state`` returned."""
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu(), device)


class seeded:
    """A context in which torch's generators, of the CPU and of `device`, start from `seed`.

    Their states are restored afterwards. Equal seeds for other purposes start other streams.

    Raises:
        BusyError: another thread is in this context, or is running a model.
    """

    def __init__(
        self,
        seed: int,
        device: torch.device | str = "cpu",
        purpose: Purpose = "estimates",
    ):
        self.seed, self.device = check_seed("seed", seed), torch.device(device)
        self.purpose: Purpose = purpose
        self._fork, self._alone = preserved_rng(self.device), one_thread()

    def __enter__(self) -> None:
        self._alone.__enter__()
        self._fork.__enter__()
        set_seed(self.seed, self.device, self.purpose)

    def __exit__(self, *exc: Any) -> None:
        self._fork.__exit__(*exc)
        self._alone.__exit__()


def set_seed(seed: int, device: torch.device, purpose: Purpose = "estimates") -> None:
    """Seeds torch's generators of the CPU and of `device`, and no others."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    stream = int.from_bytes(digest[:4])  # torch's CPU generator reads 32 bits of a seed
    torch.random.default_generator.manual_seed(stream)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(stream)
