"""The processes that train one model together, by torch's own engine (``torch.distributed``).

``torchrun --nproc-per-node N`` starts N processes, called ranks, that run the same script, each on
a device of its own. Within ``distributed()`` they know of each other: ``fit`` gives every rank its
share of every batch and averages gradients, so that all hold the same parameters at every step,
those of one process with the same batch size; ``evaluate`` gives every rank its share of the data.
What is written and printed, rank 0 writes and prints.

Reference: PyTorch Distributed: Experiences on Accelerating Data Parallel Training, Li et al.,
2020.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["PeerLostError", "ProcessGroup", "distributed", "process_group"]

_MINUTES = 10.0  # that ranks wait for each other: one may be compiling


class PeerLostError(RuntimeError):
    """Another process of this run is gone, or does not answer."""


class ProcessGroup:
    """All ranks, as one of them sees them; every method is called by all of them, in the same
    order.

    Arguments:
        rank: of this process, from 0.
        size: number of ranks; with 1, every method gives back what it is given.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """A seed of this rank's own; rank 0 has the one given."""
        return (seed + self.rank * 0x1E3779B97F4A7C15) % 2**63

    def share(self, count: int) -> slice:
        """Which of `count` things in a row are this rank's; the shares of two ranks differ by one
        at most, and may be empty.
        """
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        return tensor if self.size == 1 else self._do(dist.all_reduce, tensor)

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """Whether the flag is up on any rank."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=device)))

    def from_first(self, tensors: Sequence[Tensor]) -> None:
        """Puts rank 0's values into every tensor, in place."""
        if self.size > 1:
            for tensor in tensors:
                tensor.detach().copy_(
                    self._do(dist.broadcast, tensor.detach().contiguous(), src=0)
                )

    def rows(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, one after the other along the first dimension, in which they
        may differ.
        """
        if self.size == 1:
            return tensor
        counts = torch.zeros(self.size, dtype=torch.long, device=tensor.device)
        counts[self.rank] = len(tensor)
        sizes = self.sum(counts).tolist()
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        found = [torch.empty_like(padded) for _ in sizes]
        self._do(lambda one, into: dist.all_gather(into, one), padded, into=found)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    def _do(self, collective: Any, tensor: Tensor, **options: Any) -> Tensor:
        try:
            collective(tensor, **options)
        except RuntimeError as error:
            raise self._lost(error) from None
        return tensor

    def wait(self) -> None:
        """Waits until all ranks have come to this place.

        Raises:
            PeerLostError: one of them does not.
        """
        if self.size > 1:
            try:
                dist.barrier()
            except RuntimeError as error:
                raise self._lost(error) from None

    def _lost(self, error: RuntimeError) -> PeerLostError:
        return PeerLostError(
            f"Rank {self.rank} of {self.size}: another process of this run is gone or does not "
            f"answer ({_what(error)}). "
            "Look at what it said; then start all of them again, with resume=True if there is a "
            "run folder."
        )


def process_group() -> ProcessGroup:
    """The ranks that this process belongs to; itself alone outside of ``distributed()`` and of a
    process group of the user's.
    """
    if dist.is_available() and dist.is_initialized():
        return ProcessGroup(dist.get_rank(), dist.get_world_size())
    return ProcessGroup()


def _meet(backend: str, minutes: float) -> None:
    """Waits for all ranks that the environment announces.

    Raises:
        PeerLostError: they do not meet.
    """
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    except (RuntimeError, ValueError) as error:
        rank, size, address, port = (
            os.environ.get(k, "?") for k in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        )
        raise PeerLostError(
            f"Rank {rank} of {size}: the processes of this run did not meet at {address}:{port} "
            f"({_what(error)}). "
            "Start all of them at once with torchrun, on a free port."
        ) from None


def _what(error: Exception) -> str:
    """The first sentence of torch's error, without the line of the library's source."""
    return re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).split(". ")[0].rstrip(".")


@contextmanager
def distributed(minutes: float = _MINUTES) -> Iterator[ProcessGroup]:
    """Within it, this process and the others that ``torchrun`` has started are ranks of one world.
    Without torchrun it does nothing.

    Ranks speak NCCL, each with the GPU of its LOCAL_RANK, if there is a GPU for each, else gloo.

    Arguments:
        minutes: how long a rank waits for another before it gives up with PeerLostError.

    Example:
        >>> import vilvm
        >>> with vilvm.distributed() as world:
        ...     print(world.rank, "of", world.size)
        0 of 1

    Raises:
        PeerLostError: the ranks do not meet.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield process_group()
        return
    on_gpu = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    _meet("nccl" if on_gpu else "gloo", minutes)
    yield process_group()
    # Only when all went well: a rank that fails must not wait for the others, which are told by
    # its end.
    process_group().wait()
    dist.destroy_process_group()
