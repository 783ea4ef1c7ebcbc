"""Files that are either the old ones or the new ones, whole, whenever the machine stops; and
folders of one process.

All that is written goes through ``atomic``. What it leaves where a process is killed,
``.NAME.xxxxxxxx.tmp``, the next ``locked`` of the folder removes.
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
# The folders that this thread holds: where they are, and which they are (device and inode).
_HELD: ContextVar[Mapping[Path, tuple[int, int]]] = ContextVar(
    "held", default=MappingProxyType({})
)
_FULL, _BARRED = (
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    (errno.EROFS, errno.EACCES, errno.EPERM),
)


class NotWritten(OSError):
    """A file that could not be written; the message says which, why, and what to do.

    Arguments:
        path: of the file.
        error: the reason.
    """

    def __init__(self, path: Path, error: OSError):
        super().__init__(error.errno, error.strerror, str(path))
        self.path = path

    @property
    def remedy(self) -> str:
        """What to do, in words."""
        if self.errno in _FULL:
            return "make room there"
        if self.errno == errno.ESTALE:
            return "give the folder that is meant"
        return "make its folder writable" if self.errno in _BARRED else "see to its folder"

    def __str__(self) -> str:
        return (
            f"{self.path} could not be written ({self.strerror}): {self.remedy}, and run the same "
            "again."
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder`, and holds it for this thread alone until it is left or ends, however it
    ends.

    Within it the same thread may hold the folder again. Files that an earlier process left half
    written are removed.

    Raises:
        BlockingIOError: another process or thread holds it.
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place, mine = folder.absolute(), _identity(folder)
    if mine in _HELD.get().values():
        yield
        return
    handle = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None and handle is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        token = _HELD.set({**_HELD.get(), place: mine})
        try:
            _sweep(folder)
            yield
        finally:
            _HELD.reset(token)
    finally:
        if handle is not None:
            os.close(handle)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _sweep(folder: Path) -> None:
    """Removes what was being written in a folder, and in those within it, when a process was
    killed.
    """
    for inner, folders, files in os.walk(folder):
        for name in filter(_LEFT.fullmatch, [*folders, *files]):
            with suppress(OSError):  # a folder that is read only keeps them
                left = Path(inner, name)
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def _check_held(path: Path) -> None:
    """Raises OSError where a folder above `path` is held, and is no longer where it was: it would
    be made anew.
    """
    for folder, mine in _HELD.get().items():
        if folder not in path.absolute().parents:
            continue
        try:
            moved = _identity(folder) != mine
        except FileNotFoundError:
            moved = True
        if moved:
            raise OSError(errno.ESTALE, f"the run folder {folder} was moved or replaced meanwhile")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place at the end: no reader and no crash
    ever sees half a file.

    Raises:
        NotWritten: the disk is full or read only, or a run folder that this thread holds was
            moved.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        _check_held(path)
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
    """Writes `content` to `path`, whole or not at all; a file that holds it already is left alone.

    Raises:
        NotWritten: as ``atomic``.
    """
    data = content.encode() if isinstance(content, str) else content
    with suppress(OSError):
        if path.stat().st_size == len(data) and read(path) == data:
            return
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, NaN and infinities as null (JSON has neither)."""
    write_atomic(
        path, json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


def read(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: there is none, or something else, a pipe that would be waited for, say.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
