"""Forked child processes that are watched and killed, and whose outcome is read afterwards.

This process must have one thread when it forks. A child leads its own session, in which the
processes that it started are found after its end.
"""

import json
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import vilvm

__all__ = ["Ending", "ended", "free_port", "left_running", "one_thread", "start"]

_FILE_EVENTS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "shutil.rmtree",
}
_OURS = str(Path(vilvm.__file__).parent)
_OUR_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_MAX_WORDS = 60  # of a sentence


class Ending(NamedTuple):
    """How a child ended.

    Arguments:
        how: "done", "killed", "sentence" (an error of one sentence, raised by vilvm), "internals"
            (any other error), "exit" (SystemExit), "crash" (a signal that we did not send), or
            "hung" (killed after the time limit).
        found: the result of its work.
        message: of its error.
        seconds: until it ended.
    """

    how: str
    found: dict[str, Any]
    message: str
    seconds: float


def one_thread() -> None:
    """Restarts this program with one thread in every library, unless it has one.

    Only a process of one thread can be forked safely.
    """
    wanted = {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # of pyarrow, which pandas imports
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
    }
    if any(os.environ.get(k) != v for k, v in wanted.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **wanted})


def start(
    work: Callable[[], Mapping[str, Any]],
    outcome: Path,
    watched: Path | None = None,
    dies_at: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Forks a child that does `work` and writes its result to `outcome`; returns its process id.

    Arguments:
        work: returns the result.
        outcome: file for the result.
        watched: folder in which the child counts its operations on files ("events" of the
            result).
        dies_at: the operation before which the child kills itself.
        environment: added to the child's environment.
    """
    if (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        raise RuntimeError(f"a process of {threads} threads cannot be forked safely")
    outcome.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    found: dict[str, Any] = {}
    try:
        os.setsid()
        os.environ.update(environment or {})
        log = os.open(
            outcome.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
        events = _watch(watched, dies_at) if watched is not None else lambda: 0
        found = {"how": "done", **work(), "events": events()}
    except BaseException as error:
        print(traceback.format_exc())
        found = {"how": _kind(error), "message": str(error) or type(error).__name__}
    finally:
        sys.stdout.flush()
        partial = outcome.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        partial.rename(outcome)
        os._exit(0 if found.get("how") == "done" else 1)


def _kind(error: BaseException) -> str:
    """The kind of an error: "sentence" if vilvm raised it with one short line for the user."""
    if isinstance(error, SystemExit):
        return "exit"
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(_OURS)
    kinds = (ValueError, vilvm.PeerLostError, vilvm.NonFiniteLossError)
    sentence = "\n" not in str(error) and 0 < len(str(error).split()) <= _MAX_WORDS
    if ours and sentence and isinstance(error, kinds):
        return "sentence"
    return "internals"


def _watch(folder: Path, dies_at: int | None) -> Callable[[], int]:
    """Counts the operations of this process on files in `folder`, and kills it before operation
    `dies_at`; returns a function that gives the count.
    """
    count = [0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _FILE_EVENTS and _is_within(folder, event, args):
            if count[0] == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1

    sys.addaudithook(hook)
    return lambda: count[0]


def _is_within(folder: Path, event: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation concerns a file in `folder`."""
    path = args[0]
    if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(
        str(folder)
    ):
        return True
    # rmtree names files relative to an open folder.
    return event in ("os.remove", "os.rmdir") and args[-1] not in (-1, None)


def ended(
    child: int, outcome: Path, seconds: float = 120.0, kill_after: float | None = None
) -> Ending:
    """Waits for the end of a child.

    Arguments:
        child: its process id.
        outcome: the file of its result.
        seconds: time limit; a child that exceeds it is killed, and counts as hung.
        kill_after: seconds after which it is killed on purpose.
    """
    began = time.monotonic()
    limit = min(seconds, math.inf if kill_after is None else kill_after)
    status, in_time = _wait(child, limit)
    passed = time.monotonic() - began
    if outcome.exists():  # its work ended before the signal
        found = json.loads(outcome.read_text())
        outcome.unlink()
        return Ending(found.pop("how"), found, found.get("message", ""), passed)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if not in_time and limit == seconds:
        return Ending("hung", {}, f"signal {number}", passed)
    how = "killed" if number in _OUR_SIGNALS else "crash"
    return Ending(how, {}, f"signal {number}", passed)


def _wait(child: int, seconds: float) -> tuple[int, bool]:
    """The exit status of a child, and whether it ended in time; else it is killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() <= deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status, True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1], False


def left_running(child: int, seconds: float = 60.0) -> list[int]:
    """The processes of an ended child's session that do not end in time; they are killed."""
    deadline = time.monotonic() + seconds
    while (left := _session(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def _session(leader: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def free_port() -> int:
    """A port that no process listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
