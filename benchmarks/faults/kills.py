"""Runs that are killed with SIGKILL at random moments and resumed until they are done, compared
with the same runs undisturbed.

    python -m benchmarks.faults.kills [--kills 200] [--seed 0] [--only WORDS] [--json FILE]

Half of the kills happen at a random moment, the other half immediately before a random operation
on files in the run folder (an open, a rename, a removal), where the state is half written.
Parameters and buffers, the contents of the checkpoint (optimizer, scheduler, objective,
generators, best parameters), history and result must be equal bit for bit. Measured times are not
compared.
"""

import argparse
import hashlib
import io
import json
import math
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
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
from benchmarks.faults.configurations import CONFIGURATIONS, INDUCTOR, RANKS, fit
from benchmarks.faults.table import Row, markdown
from examples import vae_mnist
from vilvm._compile import graph
from vilvm.training import checkpoint, compiled_step

__all__ = ["Kills", "campaign", "rows", "warm_up"]

COMMAND = "python -m examples.vae_mnist"
_COMPILER = compiled_step.machine_code
_CLOCKS = {"seconds", "data_per_second", "images_per_second"}
_HELD = (
    "step",
    "model",
    "optimizer",
    "scheduler",
    "objective",
    "rng",
    "history",
    "skipped",
    "best",
    "best_step",
    "best_bound",
)
_SEEN = "the run resumes with `resume=True` and ends as if undisturbed"


class Kills(NamedTuple):
    """Counts of a campaign.

    Arguments:
        kills: SIGKILLs that ended a process.
        survived: kills of runs that ended bit-identical.
        comparisons: runs that were killed at least once and then ended.
        identical: runs among these that are bit-identical to the undisturbed one.
        leftovers: files in a run folder or beside it that the undisturbed run does not have.
        running: processes that outlived the one that started them.
        trouble: a line for each comparison that failed, leftover and process.
    """

    kills: int = 0
    survived: int = 0
    comparisons: int = 0
    identical: int = 0
    leftovers: int = 0
    running: int = 0
    trouble: tuple[str, ...] = ()

    def __add__(self, other: Any) -> "Kills":
        return Kills(*(a + b for a, b in zip(self, other, strict=True)))


# Digests of results
# -------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """A digest of the bits of nested tensors and plain values, without measured times."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()[:16]


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        _feed(found, (str(value.dtype), tuple(value.shape)))
        found.update(
            value.detach()
            .cpu()
            .contiguous()
            .reshape(-1)
            .view(torch.uint8)
            .numpy()
            .tobytes()
        )
    elif isinstance(value, Mapping):
        for key in sorted((k for k in value if k not in _CLOCKS), key=repr):
            _feed(found, (repr(key), value[key]))
    elif isinstance(value, list | tuple):
        found.update(f"[{len(value)}".encode())
        for item in value:
            _feed(found, item)
    elif isinstance(value, np.ndarray):
        found.update(value.tobytes())
    else:
        found.update(f"{type(value).__name__} {value!r};".encode())


def held(folder: Path) -> dict[str, str]:
    """Digests of the contents of the newest checkpoint of a run."""
    state = checkpoint.load(checkpoint.latest(folder / "checkpoint"))  # type: ignore[arg-type]
    table = pandas.read_csv(folder / "history.csv").drop(
        columns=["seconds", "data_per_second"]
    )
    return {
        **{f"checkpoint: {k}": digest(state[k]) for k in _HELD},
        "history.csv": digest(table.to_numpy()),
    }


def names(folder: Path) -> set[str]:
    """The files in a folder; checkpoints have one name for all steps."""
    return {
        re.sub(
            r"^checkpoint/step-\d{9}\b", "checkpoint/step", str(p.relative_to(folder))
        )
        for p in folder.rglob("*")
    }


# The runs
# -------------------------------------------------------------------------------------------------


def train(name: str, folder: Path, data: Path) -> dict[str, Any]:
    """Trains a configuration in this process, from its beginning or from its last checkpoint;
    returns digests of the results.
    """
    # All but one run the traced step without the compiler, which would take seconds.
    compiled_step.machine_code = _COMPILER if name == INDUCTOR else graph
    make = CONFIGURATIONS.get(name) or RANKS[name][1]
    with vilvm.distributed(minutes=0.5) as world:
        lvm, fitted = fit(make, folder, data)
    found = {
        "parameters": digest(dict(lvm.state_dict())),
        "history": digest(fitted.history.to_rows()),
        "result": digest(
            [fitted.steps, fitted.stopped, fitted.best_step, fitted.skipped]
        ),
    }
    if world.is_main:
        found |= held(folder)
    return {"digests": found}


def by_command(folder: Path, data: Path) -> dict[str, Any]:
    """Runs the main example with its command line, in this process.

    It is resumed if its folder has settings.
    """
    vae_mnist.vilvm.fit = partial(vilvm.fit, checkpoint_seconds=0.0)  # type: ignore[attr-defined]
    begun = (folder / "settings.json").exists()
    options = ["--data", "digits", "--epochs", "2", "--latent", "2", "--samples", "10"]
    words = ["--resume", str(folder)] if begun else [*options, "--out", str(folder)]
    answer = vae_mnist.main(words)
    results = json.loads((folder / "results.json").read_text())
    pictures = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in (folder / "figures").iterdir()
    }
    whole = (folder / "page.html").read_text().rstrip().endswith("</html>")
    return {
        "digests": {
            "answer": answer,
            "results": digest(results),
            "page": whole,
            **pictures,
            **held(folder),
        }
    }


class Case(NamedTuple):
    """A run that is killed.

    Arguments:
        name: of its configuration.
        work: done in a run folder and a folder for data.
        size: number of its processes.
    """

    name: str
    work: Callable[[Path, Path], dict[str, Any]]
    size: int = 1


def cases() -> list[Case]:
    """All cases."""
    return [
        *(Case(name, partial(train, name)) for name in CONFIGURATIONS),
        *(Case(name, partial(train, name), size) for name, (size, _) in RANKS.items()),
        Case(COMMAND, by_command),
    ]


def run(
    case: Case, place: Path, dies_at: int | None = None, kill_after: float | None = None
) -> tuple[list[Ending], int]:
    """Starts a case in ``place/run`` and may kill it; returns the endings of its processes and the
    number of processes left running.
    """
    folder, data, port = place / "run", place.parent / "data", str(free_port())
    data.mkdir(parents=True, exist_ok=True)
    place.mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(case.size):
        world = {
            "WORLD_SIZE": case.size,
            "LOCAL_WORLD_SIZE": case.size,
            "RANK": rank,
            "LOCAL_RANK": rank,
            "MASTER_PORT": port,
        }
        environment = {
            **{k: str(v) for k, v in world.items()},
            "MASTER_ADDR": "127.0.0.1",
        }
        outcome = place.parent / "outcomes" / f"{place.name}-{rank}.json"
        dies = dies_at if rank == 0 else None
        child = start(
            lambda: case.work(folder, data),
            outcome,
            folder,
            dies,
            environment if case.size > 1 else {},
        )
        children.append((child, outcome))
    # Of several ranks, only the first one is killed; the others must end because it is gone.
    endings = [
        ended(c, o, 300.0, kill_after if rank == 0 else None)
        for rank, (c, o) in enumerate(children)
    ]
    return endings, sum(len(left_running(c)) for c, _ in children)


# The campaign
# -------------------------------------------------------------------------------------------------


class Undisturbed(NamedTuple):
    """The undisturbed run of a case.

    Arguments:
        digests: of the results, by rank.
        files: in the run folder.
        events: operations on files in it.
        seconds: that it took.
    """

    digests: list[Any]
    files: set[str]
    events: int
    seconds: float


def kill(case: Case, place: Path, kills: int, draw: random.Random) -> Kills:
    """Kills a case `kills` times, and compares it each time it ends."""
    endings, running = run(case, place / "undisturbed")
    if any(e.how != "done" for e in endings):
        return Kills(
            comparisons=1,
            trouble=(f"{case.name}: undisturbed it ended with {_described(endings)}",),
        )
    undisturbed = Undisturbed(
        digests=[e.found.get("digests") for e in endings],
        files=names(place / "undisturbed" / "run"),
        events=endings[0].found.get("events", 0),
        seconds=endings[0].seconds,
    )
    total, number = Kills(running=running), 0
    while total.kills < kills and total.identical == total.comparisons:
        number += 1
        left = kills - total.kills
        total += _until_done(case, place / f"killed-{number}", left, undisturbed, draw)
    return total


def _until_done(
    case: Case, place: Path, kills: int, undisturbed: Undisturbed, draw: random.Random
) -> Kills:
    """Kills one run until it is done or was killed `kills` times; then lets it end."""
    killed, running, endings = _killed_runs(case, place, kills, undisturbed, draw)
    if not killed and endings[0].how == "done":  # the run ended before the moment
        shutil.rmtree(place)
        return Kills(running=running)
    same = [e.found.get("digests") for e in endings] == undisturbed.digests
    left_over = _left_over(place, undisturbed.files)
    trouble = [f"{case.name}: {name} is left over" for name in sorted(left_over)]
    if running:
        trouble.append(f"{case.name}: {running} processes go on")
    if same:
        shutil.rmtree(place)
    else:
        difference = _difference(endings, undisturbed.digests)
        trouble.insert(0, f"{case.name}: after {killed} kills {difference}")
    return Kills(
        killed, killed * same, 1, int(same), len(left_over), running, tuple(trouble)
    )


def _killed_runs(
    case: Case, place: Path, kills: int, undisturbed: Undisturbed, draw: random.Random
) -> tuple[int, int, list[Ending]]:
    """The number of kills, of processes left running, and how the last start ended."""
    killed = running = 0
    while True:
        moment: dict[str, Any] = {}
        if killed < kills:
            moment = _moment(undisturbed, draw)
        endings, left = run(case, place, **moment)
        running += left
        if not moment or not _was_killed(endings):
            return killed, running, endings
        killed += 1


def _moment(undisturbed: Undisturbed, draw: random.Random) -> dict[str, Any]:
    """When to kill a run: before a random operation on files, or after a random time."""
    share = draw.random()
    if draw.random() < 0.5:
        return {"dies_at": int(share * undisturbed.events)}
    return {"kill_after": share * undisturbed.seconds}


def _was_killed(endings: list[Ending]) -> bool:
    """Whether the first process was killed and the others ended properly."""
    proper = ("killed", "sentence", "done")
    return endings[0].how == "killed" and all(e.how in proper for e in endings)


def _left_over(place: Path, expected: set[str]) -> set[str]:
    """Files in the run folder that are not expected, and files beside it."""
    beside = names(place) - {"run"} - _inside(place)
    if not (place / "run").exists():
        return beside
    return beside | (names(place / "run") - expected)


def _inside(place: Path) -> set[str]:
    return {name for name in names(place) if name.startswith("run/")}


def _difference(endings: list[Ending], expected: list[Any]) -> str:
    if any(e.how != "done" for e in endings):
        return f"it ended with {_described(endings)}"
    parts = {
        k
        for e, right in zip(endings, expected, strict=True)
        for k in right
        if e.found["digests"].get(k) != right[k]
    }
    return f"these differ: {', '.join(sorted(parts))}"


def _described(endings: list[Ending]) -> str:
    return "; ".join(f"{e.how}: {e.message}" if e.message else e.how for e in endings)


def warm_up(folder: Path) -> None:
    """Takes a few steps in this process, so that its children share the imports."""
    fit(CONFIGURATIONS["optimizer: Adam"], folder / "warm", folder)
    fit(CONFIGURATIONS["in turn"], folder / "warm in turn", folder)
    compiled_step.machine_code = graph
    with redirect_stdout(io.StringIO()):
        fit(CONFIGURATIONS["compiled: Adam"], folder / "warm compiled", folder)


def campaign(
    kills: int, seed: int = 0, only: str = "", verbose: bool = True
) -> dict[str, Kills]:
    """At least `kills` kills, distributed over the cases whose name contains a word of `only`."""
    chosen = [
        c
        for c in cases()
        if not only or any(word in c.name for word in only.split("|"))
    ]
    found: dict[str, Kills] = {}
    with tempfile.TemporaryDirectory(prefix="vilvm-faults-") as base:
        warm_up(Path(base))
        for number, case in enumerate(chosen):
            before, after = (
                math.ceil(kills * n / len(chosen)) for n in (number, number + 1)
            )
            share = after - before
            found[case.name] = kill(
                case,
                Path(base) / str(number),
                max(1, share),
                random.Random(f"{seed} {case.name}"),
            )
            if verbose:
                print(f"{case.name}: {found[case.name]}", file=sys.stderr, flush=True)
    return found


def rows(found: Mapping[str, Kills]) -> list[Row]:
    """The rows of the table: runs of one process, of several ranks, and by the command line."""
    kinds = {
        "one process": ([n for n in found if n in CONFIGURATIONS], ""),
        "several ranks": (
            [n for n in found if n in RANKS],
            "; the other ranks end with `PeerLostError`",
        ),
        f"`{COMMAND}`": (
            [n for n in found if n == COMMAND],
            ", page and figures included",
        ),
    }
    out = []
    for kind, (members, also_seen) in kinds.items():
        if members:
            total = sum((found[n] for n in members), Kills())
            several = f"{len(members)} configurations, " * (len(members) > 1)
            what = f"SIGKILL at a random moment: {kind}, {several}{total.comparisons} comparisons"
            out.append(
                Row(what, total.kills, total.survived, _SEEN + also_seen, total.trouble)
            )
    every = sum(found.values(), Kills())
    clean = max(0, every.comparisons - every.leftovers)
    stopped = max(0, every.kills - every.running)
    return [
        *out,
        Row("files left over after these", every.comparisons, clean, "nothing"),
        Row("processes left running after these", every.kills, stopped, "nothing"),
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.kills",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only",
        default="",
        help="words, split by |; a configuration runs if its name contains one",
    )
    parser.add_argument("--json", type=Path, help="file for the counts")
    args = parser.parse_args(argv)
    one_thread()
    found = campaign(args.kills, args.seed, args.only)
    total = sum(found.values(), Kills())
    print(markdown(rows(found)))
    print("\n".join(total.trouble))
    if args.json:
        args.json.write_text(
            json.dumps(
                {
                    "total": total._asdict(),
                    "cases": {n: k._asdict() for n, k in found.items()},
                }
            )
        )
    sys.exit(bool(total.trouble))


if __name__ == "__main__":
    main()
