"""Memory: how much there is, how much a computation takes, and how to use the same pages again and
again.
"""

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["bytes_made", "free_bytes", "is_out_of_memory", "trim_heap", "widen_heap"]

# what torch says; the second on Windows
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
_KEPT = 2**28  # bytes of freed memory that the heap may keep


def widen_heap() -> None:
    """Frees one large tensor, upon which glibc keeps tensors of that size on its heap and does not
    hand their pages back.

    Without it every pass over a batch faults its memory in anew: a quarter of a compiled training
    step on a CPU, and half of an evaluation.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def trim_heap() -> None:
    """Hands the pages of freed memory back to the system where the widened heap keeps more than
    256 MB of them.

    Between tensors that live on, glibc would keep them for good, and as many as were ever in use
    at once.
    """
    libc = _glibc()
    if libc is not None and libc.mallinfo2().fordblks > _KEPT:
        libc.malloc_trim(0)


class _HeapInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``; `fordblks` are the bytes that are free in it."""

    _names = (
        "arena",
        "ordblks",
        "smblks",
        "hblks",
        "hblkhd",
        "usmblks",
        "fsmblks",
        "uordblks",
        "fordblks",
        "keepcost",
    )
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


@cache
def _glibc() -> Any:
    """The C library, if it is a glibc that knows what its heap holds (2.33); else None."""
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not (hasattr(libc, "mallinfo2") and hasattr(libc, "malloc_trim")):
        return None
    libc.mallinfo2.restype = _HeapInfo
    return libc


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, torch's of a GPU, and torch's of the
    host, which has no class of its own.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device; where the system does not log, as much as one
    could ask for.

    On a CPU, that of the machine, or of the container or batch job (Linux control groups) that
    this process may fill.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    told = Path("/proc/meminfo")
    lines = told.read_text().splitlines() if told.exists() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return max(0, min([*free, *_left_in_groups()], default=2**62))


def _left_in_groups(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Bytes to the limit of every control group that this process is in; what the files read are
    cached in can be had back, and counts as left.
    """
    left = []
    for line in proc.read_text().splitlines() if proc.exists() else []:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        # The second version of control groups, and the first.
        top, limit, used, prefix = (
            (root, "memory.max", "memory.current", "")
            if not kinds
            else (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        )
        own = top / path.lstrip("/")
        for group in [own, *own.parents]:
            # no such group is seen from here, or it has no limit ("max")
            with suppress(OSError, ValueError):
                left.append(int((group / limit).read_text()) - int((group / used).read_text()))
                stat = dict(
                    row.split() for row in (group / "memory.stat").read_text().splitlines()
                )
                left[-1] += sum(
                    int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active")
                )
            if group == top:
                break
    return left


class _Made(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage().data_ptr()
            for t in tree_leaves((args, kwargs))
            if isinstance(t, Tensor)
        }
        for t in tree_leaves(found):
            # a view takes no memory
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in given:
                self.total += t.untyped_storage().nbytes()
        return found


def bytes_made(function: Callable[[], Any]) -> int:
    """Bytes of all tensors that `function` makes: as much memory as it can take if it keeps every
    one of them.
    """
    with _Made() as made:
        function()
    return made.total
