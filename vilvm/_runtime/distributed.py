"""Data-parallel training and evaluation on several processes, by ``torch.distributed``.

``torchrun --nproc-per-node N`` starts N processes, called ranks, that run the same script, each on
its own device. Within ``distributed()`` they form a process group. ``fit`` gives every rank its
shard of every batch and averages the gradients, so that at every step all ranks hold the same
parameters as one process with the same batch size. ``evaluate`` gives every rank its shard of the
data. Only rank 0 writes files and prints.

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

_MINUTES = 10.0  # timeout of a collective: another rank may be compiling


class PeerLostError(RuntimeError):
    """Another process of this run has ended, or does not answer."""


class ProcessGroup:
    """The ranks of a run and their collectives, which all ranks call in the same order.

    Arguments:
        rank: index of this process, from 0.
        size: number of ranks; with 1, every collective returns its argument.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """A seed for this rank; rank 0 keeps `seed`."""
        return (seed + self.rank * 0x1E3779B97F4A7C15) % 2**63

    def shard(self, count: int) -> slice:
        """The indices below `count` that belong to this rank.

        The sizes of two shards differ by at most one; a shard may be empty.
        """
        return slice(
            self.rank * count // self.size, (self.rank + 1) * count // self.size
        )

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over the ranks, in place (all-reduce)."""
        if self.size == 1:
            return tensor
        return self._run(dist.all_reduce, tensor)

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """Whether the flag is true on any rank."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)))

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Copies rank 0's values into every tensor, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            values = self._run(dist.broadcast, tensor.detach().contiguous(), src=0)
            tensor.detach().copy_(values)

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenates the tensors of all ranks along dimension 0, whose size may differ."""
        if self.size == 1:
            return tensor
        counts = torch.zeros(self.size, dtype=torch.long, device=tensor.device)
        counts[self.rank] = len(tensor)
        sizes = self.sum(counts).tolist()
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        gathered = [torch.empty_like(padded) for _ in sizes]
        self._run(lambda one, into: dist.all_gather(into, one), padded, into=gathered)
        return torch.cat(
            [part[:size] for part, size in zip(gathered, sizes, strict=True)]
        )

    def _run(self, collective: Any, tensor: Tensor, **options: Any) -> Tensor:
        try:
            collective(tensor, **options)
        except RuntimeError as error:
            raise self._lost(error) from None
        return tensor

    def barrier(self) -> None:
        """Waits until all ranks have reached this call.

        Raises:
            PeerLostError: a rank does not reach it.
        """
        if self.size == 1:
            return
        try:
            dist.barrier()
        except RuntimeError as error:
            raise self._lost(error) from None

    def _lost(self, error: RuntimeError) -> PeerLostError:
        return PeerLostError(
            f"Rank {self.rank} of {self.size}: another process of this run is gone or does not "
            f"answer ({_first_sentence(error)}). Read its error message; then start all of them "
            "again, with resume=True if there is a run folder."
        )


def process_group() -> ProcessGroup:
    """The process group of ``distributed()`` or of the user; else a group of one process."""
    if dist.is_available() and dist.is_initialized():
        return ProcessGroup(dist.get_rank(), dist.get_world_size())
    return ProcessGroup()


def _start_group(backend: str, minutes: float) -> None:
    """Starts the process group that the environment describes.

    Raises:
        PeerLostError: a rank does not connect in time.
    """
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    except (RuntimeError, ValueError) as error:
        rank, size, address, port = (
            os.environ.get(k, "?")
            for k in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        )
        raise PeerLostError(
            f"Rank {rank} of {size}: the processes of this run did not meet at {address}:{port} "
            f"({_first_sentence(error)}). Start all of them at once with torchrun, on a free port."
        ) from None


def _first_sentence(error: Exception) -> str:
    """The first sentence of torch's error, without the line of the library's source."""
    return (
        re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).split(". ")[0].rstrip(".")
    )


@contextmanager
def distributed(minutes: float = _MINUTES) -> Iterator[ProcessGroup]:
    """A context in which the processes that ``torchrun`` started form one process group.

    Without torchrun it does nothing. If there is a GPU for each rank, the backend is NCCL and each
    rank uses the GPU of its LOCAL_RANK; otherwise the backend is gloo.

    Arguments:
        minutes: timeout after which a rank that waits for another raises PeerLostError.

    Returns:
        A context whose value is the group, with `rank` and `size`.

    Raises:
        PeerLostError: a rank does not connect in time.

    Reference: PyTorch Distributed: Experiences on Accelerating Data Parallel Training, Li et al.,
    2020.

    Examples:
        >>> import vilvm
        >>> with vilvm.distributed() as group:
        ...     print(group.rank, "of", group.size)
        0 of 1
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield process_group()
        return
    backend = "gloo"
    if torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl"
    _start_group(backend, minutes)
    yield process_group()
    # only on success: a rank that fails must not wait for the others, which notice its end
    process_group().barrier()
    dist.destroy_process_group()
