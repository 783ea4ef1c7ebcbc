"""Atomic writes, and locks on folders.

Every file is written through ``atomic``: a crash leaves either the old file or the new one, whole.
A killed process can leave a temporary file, ``.NAME.xxxxxxxx.tmp``; the next ``locked`` of the
folder removes it.

``locked`` locks the folder itself with ``flock``, whereas the library filelock locks a file in it.
So it leaves no lock file in a run folder, works in a read-only folder, and a killed process
releases its lock.
"""

import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None

__all__ = ["NotWritten", "atomic", "locked", "read", "write_atomic", "write_json"]

_LEFT = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
# The folders that this thread holds: their paths, and their identities (device and inode).
_HELD: ContextVar[Mapping[Path, tuple[int, int]]] = ContextVar(
    "held", default=MappingProxyType({})
)
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room there"),
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM), "make its folder writable"
    ),
    errno.ESTALE: "give the folder that you mean",
}


class NotWritten(OSError):
    """A file that could not be written; the message names it, the reason and the remedy.

    Arguments:
        path: of the file.
        error: the reason.
    """

    def __init__(self, path: Path, error: OSError):
        super().__init__(error.errno, error.strerror, str(path))
        self.path = path

    @property
    def remedy(self) -> str:
        """What to do."""
        return _REMEDIES.get(self.errno or 0, "check its folder")

    def __str__(self) -> str:
        return (
            f"{self.path} could not be written ({self.strerror}): {self.remedy}, and run it "
            "again."
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A context in which only this thread holds `folder`, which is created if missing.

    The same thread may enter it again. Temporary files of killed processes are removed. The lock
    ends with the context or with the process.

    Raises:
        BlockingIOError: another process or thread holds the folder.
        OSError: the folder cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, identity = folder.absolute(), _identity(folder)
    if identity in _HELD.get().values():
        yield
        return
    with _flock(folder):
        token = _HELD.set({**_HELD.get(), path: identity})
        try:
            _remove_temporaries(folder)
            yield
        finally:
            _HELD.reset(token)


@contextmanager
def _flock(folder: Path) -> Iterator[None]:
    """Holds the system's lock on a folder; does nothing on systems without locks."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _remove_temporaries(folder: Path) -> None:
    """Removes the temporary files and folders below `folder` that killed processes left."""
    for inner, folders, files in os.walk(folder):
        for name in filter(_LEFT.fullmatch, [*folders, *files]):
            with suppress(OSError):  # a read-only folder keeps them
                _remove(Path(inner, name))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _check_not_moved(path: Path) -> None:
    """Raises OSError if a held folder above `path` was moved, since a write would recreate it."""
    for folder, identity in _HELD.get().items():
        if folder not in path.absolute().parents:
            continue
        try:
            moved = _identity(folder) != identity
        except FileNotFoundError:
            moved = True
        if moved:
            raise OSError(
                errno.ESTALE, f"the run folder {folder} was moved or replaced meanwhile"
            )


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` at the end of the context.

    A reader never sees a partial file, even after a crash.

    Raises:
        NotWritten: the disk is full or read-only, or a folder that this thread holds was moved.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        _check_not_moved(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and not isinstance(error, NotWritten):
            raise NotWritten(path, error) from None
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes `content` to `path` atomically; a file that already has this content is not touched.

    Raises:
        NotWritten: see ``atomic``.
    """
    data = content
    if isinstance(data, str):
        data = data.encode()
    with suppress(OSError):
        if path.stat().st_size == len(data) and read(path) == data:
            return
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, NaN and infinities as null (JSON has neither)."""
    write_atomic(
        path,
        json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
        + "\n",
    )


def read(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: there is no such file, or it is not a regular file (a pipe would block).
    """
    handle = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
