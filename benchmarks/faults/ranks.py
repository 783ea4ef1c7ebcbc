"""Several processes train one model, and one of them fails: all must end, with one sentence.

    python -m benchmarks.faults.ranks [--only WORDS] [--json FILE]

A rank that fails by its own error reports it. The others end because they lose it: immediately if
the connection breaks, else after the time limit of ``vilvm.distributed``, which is some seconds
here.
"""

import argparse
import errno
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import vilvm
from benchmarks.faults.children import (
    Ending,
    ended,
    free_port,
    left_running,
    one_thread,
    start,
)
from benchmarks.faults.configurations import RANKS, fit, normalised
from benchmarks.faults.kills import warm_up
from benchmarks.faults.table import Row, markdown
from vilvm.training import checkpoint

__all__ = ["FAULTS", "Fault", "rows", "tried"]

ENDLESS = 10_000_000
_WAIT = 6.0  # seconds that a rank waits for another that does not answer
_LIMIT = 45.0  # seconds within which all must have ended


class Scene(NamedTuple):
    """The run that a fault afflicts.

    Arguments:
        folder: the run folder.
        ranks: process ids.
    """

    folder: Path
    ranks: list[int]

    def under_way(self) -> None:
        """Waits until the run has taken some steps."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            newest = checkpoint.latest(self.folder / "checkpoint")
            if newest is not None and newest.name > "step-000000003":
                return
            time.sleep(0.01)
        raise RuntimeError("the run took no steps")


class Fault(NamedTuple):
    """A fault of one rank.

    Arguments:
        name: its name.
        work: called by each rank with its rank and the run folder.
        afflict: called with the running ranks.
        size: number of ranks that the environment announces.
        starts: the ranks that are started.
        prepare: called with the run folder before the start.
        resumes: whether the run must resume afterwards.
        expects: text that the outcome of some rank must contain.
    """

    name: str
    work: Callable[[int, Path], Any]
    afflict: Callable[[Scene], Any] = lambda scene: None
    size: int = 2
    starts: Sequence[int] = (0, 1)
    prepare: Callable[[Path], Any] = lambda folder: None
    resumes: bool = False
    expects: str = "another process of this run is gone"


# The work of ranks
# -------------------------------------------------------------------------------------------------


def training(
    rank: int,
    folder: Path,
    steps: int = ENDLESS,
    minutes: float = _WAIT / 60,
    **options: Any,
) -> dict[str, Any]:
    """A run of many steps, a checkpoint after each."""
    with vilvm.distributed(minutes):
        _, fitted = fit(RANKS["2 ranks"][1], folder, folder, steps=steps, **options)
    return {"steps": fitted.steps, "stopped": fitted.stopped}


def patient(rank: int, folder: Path, **options: Any) -> dict[str, Any]:
    """A run whose ranks wait ten minutes: only a broken connection can end it in time."""
    return training(rank, folder, minutes=10.0, **options)


def failing(rank: int, folder: Path, who: int) -> dict[str, Any]:
    """One rank's callback raises."""

    def callback(event: vilvm.Event) -> None:
        if rank == who:
            raise ValueError("a mistake in the callback of this rank")

    return patient(rank, folder, callbacks=[callback])


def full_disk(rank: int, folder: Path) -> dict[str, Any]:
    """The disk that rank 0 writes to fills up after some checkpoints."""
    real, left = os.fsync, [40]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    if rank == 0:
        os.fsync = fsync
    return patient(rank, folder)


def other_data(rank: int, folder: Path) -> dict[str, Any]:
    with vilvm.distributed(1.0):
        fit(
            lambda data: normalised()._replace(data=torch.ones(61, 6) * rank),
            folder,
            folder,
        )
    return {}


def without_folder(rank: int, folder: Path) -> dict[str, Any]:
    with vilvm.distributed(1.0):
        lvm, x, _ = normalised()
        vilvm.fit(
            lvm, x, steps=20, run_dir=folder if rank == 0 else None, progress=False
        )
    return {}


def not_finite(rank: int, folder: Path) -> dict[str, Any]:
    """One rank's share of a batch has no finite density."""

    def poisoned(step: int) -> dict[str, float]:
        return {"scale": float("inf") if rank == 1 and step == 5 else 1.0}

    return patient(rank, folder, arguments=poisoned)


def evaluating(rank: int, folder: Path) -> dict[str, Any]:
    """A run of a few steps, and an evaluation that takes long."""
    with vilvm.distributed(10.0):
        lvm, _ = fit(RANKS["2 ranks"][1], folder, folder, steps=5)
        (folder / f"evaluating-{rank}").touch()
        vilvm.evaluate(lvm, torch.zeros(61, 6), num_samples=100_000)
    return {}


def port_taken(rank: int, folder: Path) -> dict[str, Any]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))
        taken.listen()
        return training(rank, folder)


def waiting(rank: int, folder: Path) -> dict[str, Any]:
    """One rank is done and waits for the other, which is killed."""
    with vilvm.distributed(10.0):
        fit(RANKS["2 ranks"][1], folder, folder, steps=5)
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return {}


# Faults
# -------------------------------------------------------------------------------------------------


def sent(number: int, to: int) -> Callable[[Scene], None]:
    """A signal to one rank, once the run is under way."""

    def afflict(scene: Scene) -> None:
        scene.under_way()
        os.kill(scene.ranks[to], number)

    return afflict


def killed_in_evaluation(scene: Scene) -> None:
    deadline = time.monotonic() + 30
    while not (scene.folder / "evaluating-1").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(scene.ranks[1], signal.SIGKILL)


def run_before(folder: Path) -> Path:
    """A short run of the two ranks in the folder; its newest checkpoint."""
    done = _run(Fault("a run before", partial(training, steps=8)), folder)[0]
    assert all(e.how == "done" for e in done), done
    found = checkpoint.latest(folder / "checkpoint")
    assert found is not None
    return found


def truncated(folder: Path) -> None:
    file = run_before(folder) / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def altered(folder: Path) -> None:
    file = run_before(folder) / "state.json"
    file.write_text(file.read_text().replace('"step": 8', '"step": 7'))


def occupied(folder: Path) -> None:
    """A file stands where the run folder should be."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("")


OWN = "a mistake in the callback"
FAULTS = [
    *(
        Fault(f"rank {r} killed", patient, sent(signal.SIGKILL, r), resumes=True)
        for r in (0, 1)
    ),
    Fault(
        "rank 2 of 3 killed",
        patient,
        sent(signal.SIGKILL, 2),
        size=3,
        starts=(0, 1, 2),
        resumes=True,
    ),
    *(
        Fault(
            f"rank {r} stopped (SIGSTOP)",
            training,
            sent(signal.SIGSTOP, r),
            resumes=True,
        )
        for r in (0, 1)
    ),
    Fault("rank 1 killed in an evaluation", evaluating, killed_in_evaluation),
    Fault("rank 0 killed when rank 1 is done", waiting),
    Fault("rank 1 never starts", training, starts=(0,), expects="did not meet"),
    Fault("the port is taken", port_taken, starts=(0,), expects="did not meet"),
    Fault("rank 0 never starts", training, starts=(1,), expects="did not meet"),
    *(
        Fault(
            f"SIGTERM to rank {r}",
            patient,
            sent(signal.SIGTERM, r),
            resumes=True,
            expects="interrupted",
        )
        for r in (0, 1)
    ),
    Fault(
        "Ctrl-C at rank 1",
        patient,
        sent(signal.SIGINT, 1),
        resumes=True,
        expects="interrupted",
    ),
    *(
        Fault(
            f"an error in the callback of rank {r}",
            partial(failing, who=r),
            resumes=True,
            expects=OWN,
        )
        for r in (0, 1)
    ),
    Fault("rank 1's loss is not finite", not_finite, expects="loss"),
    Fault("the disk is full", full_disk, resumes=True, expects="could not be written"),
    Fault(
        "the newest checkpoint is truncated",
        patient,
        prepare=truncated,
        expects="truncated or altered",
    ),
    Fault(
        "the newest checkpoint is altered", patient, prepare=altered, expects="altered"
    ),
    Fault(
        "a file stands in the place of the run folder",
        patient,
        prepare=occupied,
        expects="cannot be made",
    ),
    Fault("rank 1 has other data", other_data, expects="other data"),
    Fault("rank 1 has no run folder", without_folder, expects="run_dir included"),
]


# Trials
# -------------------------------------------------------------------------------------------------


def _run(fault: Fault, folder: Path) -> tuple[list[Ending], int]:
    """How the started ranks ended, and how many processes they left running."""
    port = str(free_port())
    children = []
    for rank in fault.starts:
        outcome = folder.parent / "outcomes" / f"{rank}.json"
        work, environment = (
            partial(fault.work, rank, folder),
            _environment(fault, rank, port),
        )
        children.append((start(work, outcome, environment=environment), outcome))
    scene = Scene(folder, [child for child, _ in children])
    fault.afflict(scene)
    stopped = [c for c, _ in children if _state(c) == "T"]
    # A stopped process cannot end: it is killed after the others have ended.
    endings = [ended(c, o, _LIMIT) for c, o in children if c not in stopped]
    for child, outcome in children:
        if child in stopped:
            os.kill(child, signal.SIGKILL)
            endings.append(ended(child, outcome))
    return endings, sum(len(left_running(c)) for c, _ in children)


def _environment(fault: Fault, rank: int, port: str) -> dict[str, str]:
    """The environment variables of a rank, as torchrun sets them."""
    return {
        "WORLD_SIZE": str(fault.size),
        "LOCAL_WORLD_SIZE": str(fault.size),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_PORT": port,
        "MASTER_ADDR": "127.0.0.1",
    }


def _state(process: int) -> str:
    time.sleep(0.02)  # a signal takes a moment
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def tried(fault: Fault, place: Path) -> tuple[str, list[Ending]]:
    """What went wrong ("" if nothing did), and the endings of the ranks."""
    folder = place / "run"
    fault.prepare(folder)
    endings, running = _run(fault, folder)
    wrong = [f"{e.how}: {e.message}" for e in endings if not _is_proper(e)]
    messages = " ".join(
        [*(e.message for e in endings), *(str(e.found) for e in endings)]
    )
    if wrong:
        return f"ended with {wrong[0]}", endings
    if fault.expects not in messages:
        return f"no rank reported {fault.expects!r}, but: {messages}", endings
    if running:
        return f"{running} processes go on", endings
    if fault.resumes:
        return _resumed(fault, folder), endings
    return "", endings


def _is_proper(ending: Ending) -> bool:
    return ending.how in ("done", "killed", "sentence") or OWN in ending.message


def _resumed(fault: Fault, folder: Path) -> str:
    """Resumes the run for five steps; returns what went wrong, or ""."""
    newest = checkpoint.latest(folder / "checkpoint")
    assert newest is not None
    steps = int(newest.name[5:]) + 5
    work = partial(patient, steps=steps)
    again, _ = _run(
        Fault("resumed", work, size=fault.size, starts=fault.starts), folder
    )
    if any(e.how != "done" or e.found["steps"] != steps for e in again):
        return f"does not resume: {again}"
    return ""


def rows(only: str = "", verbose: bool = True) -> list[Row]:
    """A row for each fault whose name contains a word of `only`."""
    words, out = only.split("|"), []
    chosen = [fault for fault in FAULTS if any(word in fault.name for word in words)]
    with tempfile.TemporaryDirectory(prefix="vilvm-faults-") as base:
        warm_up(Path(base))
        for number, fault in enumerate(chosen):
            began = time.monotonic()
            wrong, endings = tried(fault, Path(base) / str(number))
            if verbose:
                print(
                    f"{fault.name}: {time.monotonic() - began:.1f} s, {wrong or endings}",
                    file=sys.stderr,
                    flush=True,
                )
            out.append(
                Row(
                    f"ranks: {fault.name}",
                    1,
                    int(not wrong),
                    _seen(fault, endings),
                    (f"{fault.name}: {wrong}",) * bool(wrong),
                )
            )
    return out


def _seen(fault: Fault, endings: list[Ending]) -> str:
    """The first sentence of the most informative rank, without parts that differ between runs."""
    messages = [e.message for e in endings if e.message and e.how != "killed"]
    first = next(
        (m for m in messages if fault.expects in m), messages[0] if messages else ""
    )
    if not first:
        return "all stop after the same step and print how to resume"
    sentence = (
        re.sub(r" \([^()]*(\([^()]*\))?\)", "", first).split("; ")[0].split(". ")[0]
    )
    sentence = re.sub(r"/\S*/run\b", "RUN", sentence)
    sentence = re.sub(r"127\.0\.0\.1:\d+", "HOST:PORT", sentence)
    return f"“{sentence.rstrip('.')}.”"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.ranks",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument(
        "--only",
        default="",
        help="words, split by |; a fault runs if its name contains one",
    )
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args(argv)
    one_thread()
    found = rows(args.only)
    print(markdown(found))
    if args.json:
        args.json.write_text(json.dumps([row._asdict() for row in found]))
    sys.exit(any(row.trouble for row in found))


if __name__ == "__main__":
    main()
