"""Processes that are forked from this one, watched, killed, and asked afterwards what became of
them.

This process must have one thread when it forks. A child leads a session of its own, by which
whatever it started can be found after its end.
"""

import json
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
_LONGEST = 60  # words of a sentence


class Ending(NamedTuple):
    """How a child ended.

    Arguments:
        how: "done", "killed", "sentence" (an error of one sentence, raised by vilvm), "internals"
            (any other error), "exit" (SystemExit), "crash" (a signal that was not ours), or "hung"
            (it had to be killed).
        found: what its work returned.
        message: of its error.
        seconds: until it ended.
    """

    how: str
    found: dict[str, Any]
    message: str
    seconds: float


def one_thread() -> None:
    """Starts this program again with one thread in every library, unless it has been: only such a
    process can be forked safely.
    """
    wanted = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if any(os.environ.get(k) != v for k, v in wanted.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **wanted})


def start(
    work: Callable[[], Mapping[str, Any]],
    outcome: Path,
    watched: Path | None = None,
    dies_at: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Forks a child that does `work` and writes what that returns to `outcome`; returns its
    process id.

    Arguments:
        watched: folder in which the child counts what it does to files ("events" of what it
            found).
        dies_at: at which of these events the child kills itself, before the event takes place.
        environment: what is added to the child's environment.
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
        log = os.open(outcome.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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
    """Whether an error is a sentence to the user: raised by vilvm itself, on one line, of some
    length.
    """
    if isinstance(error, SystemExit):
        return "exit"
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(_OURS)
    kinds = (ValueError, vilvm.PeerLostError, vilvm.NonFiniteLossError)
    sentence = "\n" not in str(error) and 0 < len(str(error).split()) <= _LONGEST
    return "sentence" if ours and isinstance(error, kinds) and sentence else "internals"


def _watch(folder: Path, dies_at: int | None) -> Callable[[], int]:
    """Counts what this process does to files in `folder`, and kills it before event number
    `dies_at`; returns the count so far.
    """
    count, prefix = [0], str(folder)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in _FILE_EVENTS:
            return
        path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else ""
        # Within rmtree, files are named relative to an open folder.
        if path.startswith(prefix) or (
            event in ("os.remove", "os.rmdir") and args[-1] not in (-1, None)
        ):
            if count[0] == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1

    sys.addaudithook(hook)
    return lambda: count[0]


def ended(
    child: int, outcome: Path, seconds: float = 120.0, kill_after: float | None = None
) -> Ending:
    """Waits for the end of a child.

    Arguments:
        seconds: after which it is killed, and counts as hung.
        kill_after: seconds after which it is killed on purpose.
    """
    began, hung = time.monotonic(), False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        passed = time.monotonic() - began
        if passed > seconds or (kill_after is not None and passed > kill_after):
            hung = kill_after is None or passed > seconds
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    passed = time.monotonic() - began
    if outcome.exists():  # its work had ended before the signal came
        found = json.loads(outcome.read_text())
        outcome.unlink()
        return Ending(found.pop("how"), found, found.get("message", ""), passed)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    how = (
        "hung"
        if hung
        else "killed"
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        else "crash"
    )
    return Ending(how, {}, f"signal {number}", passed)


def left_running(child: int, seconds: float = 60.0) -> list[int]:
    """Processes of the session of a child that has ended, which do not end within some seconds
    themselves; they are killed.
    """
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
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
