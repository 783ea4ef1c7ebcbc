"""Free memory, the memory that a computation allocates, and the pages that the heap keeps."""

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["bytes_made", "free_bytes", "is_out_of_memory", "trim_heap", "widen_heap"]

# torch's messages; the second on Windows
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
_KEPT = 2**28  # bytes of freed memory that the heap may keep


def widen_heap() -> None:
    """Frees one large tensor, so that glibc keeps tensors of that size on its heap.

    Otherwise glibc returns their pages to the system, and every pass over a batch has page faults
    again. They take a quarter of a compiled training step on a CPU, and half of an evaluation.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def trim_heap() -> None:
    """Returns freed pages to the system if the widened heap keeps more than 256 MB of them.

    glibc never returns pages that lie between live tensors, so the heap would stay as large as it
    ever was.
    """
    libc = _glibc()
    if libc is not None and libc.mallinfo2().fordblks > _KEPT:
        libc.malloc_trim(0)


class _HeapInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``; `fordblks` counts the free bytes of the heap."""

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
    """The C library, if it is a glibc with ``mallinfo2`` (2.33 or later); else None."""
    if sys.platform != "linux":
        return None
    libc: Any = ctypes.CDLL(None)
    if not (hasattr(libc, "mallinfo2") and hasattr(libc, "malloc_trim")):
        return None
    libc.mallinfo2.restype = _HeapInfo
    return libc


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that memory ran out: Python's, or torch's on a GPU or the host.

    On the host, torch raises a RuntimeError, which is recognised by its message.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        message in str(error) for message in _OUT_OF_MEMORY
    )


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still allocate on a device; 2⁶² if the system reports none.

    On a CPU, the machine or the container or batch job (Linux control groups) sets the limit.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    available = [
        int(line.split()[1]) * 1024
        for line in _lines(Path("/proc/meminfo"))
        if line.startswith("MemAvailable:")
    ]
    return max(0, min([*available, *_left_in_groups()], default=2**62))


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return path.read_text().splitlines()


class _GroupFiles(NamedTuple):
    """The files of one version of Linux control groups."""

    folder: str
    limit: str
    used: str
    prefix: str  # of the names in memory.stat


_VERSION_1 = _GroupFiles(
    "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
)
_VERSION_2 = _GroupFiles("", "memory.max", "memory.current", "")


def _left_in_groups(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Bytes left below the limit of every control group of this process.

    The page cache counts as free, since the system reclaims it when memory is needed.
    """
    left = []
    for line in _lines(proc):
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        files = _VERSION_1
        if not kinds:
            files = _VERSION_2
        top = root / files.folder
        own = top / path.lstrip("/")
        for group in [own, *own.parents]:
            # the group is not visible from here, or it has no limit ("max")
            with suppress(OSError, ValueError):
                left.append(_left_in(group, files))
            if group == top:
                break
    return left


def _left_in(group: Path, files: _GroupFiles) -> int:
    left = int((group / files.limit).read_text()) - int(
        (group / files.used).read_text()
    )
    with suppress(OSError, ValueError):
        stat = dict(
            row.split() for row in (group / "memory.stat").read_text().splitlines()
        )
        kinds = ("inactive", "active")
        left += sum(int(stat.get(f"{files.prefix}{kind}_file", 0)) for kind in kinds)
    return left


class _Allocations(TorchDispatchMode):
    """Counts the bytes of every new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        for t in _tensors(result):
            if t.untyped_storage().data_ptr() not in given:  # a view takes no memory
                self.total += t.untyped_storage().nbytes()
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def bytes_made(function: Callable[[], Any]) -> int:
    """Bytes of all tensors that `function` makes, an upper bound of the memory that it needs."""
    with _Allocations() as allocations:
        function()
    return allocations.total
