"""Runs that are killed with SIGKILL at random moments and resumed until they are done, against the
same runs undisturbed.

    python -m benchmarks.faults.kills [--kills 200] [--seed 0] [--only WORDS] [--json FILE]

Half of the kills fall at a random moment of the run, the other half right before a random one of
the operations on files in the run folder (an open, a rename, a removal), where a half-written
state would be. Compared are all parameters and buffers, what the checkpoint holds (optimizer,
scheduler, objective, generators, best parameters), history and result, bit for bit; clocks are
left out.
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
from benchmarks.faults.children import Ending, ended, free_port, left_running, one_thread, start
from benchmarks.faults.configurations import CONFIGURATIONS, INDUCTOR, RANKS, fit
from benchmarks.faults.table import Row, markdown
from examples import vae_mnist
from vilvm._compile import graph
from vilvm.training import checkpoint, compiled_step

__all__ = ["Kills", "campaign", "rows", "warm_up"]

COMMAND = "python -m examples.vae_mnist"
_INDUCTOR = compiled_step.inductor
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
        survived: of these, those of runs that ended bit-identical.
        comparisons: of a run that was killed at least once and then done, with the undisturbed
            one.
        identical: of these, the bit-identical ones.
        leftovers: files in a run folder or beside it that the undisturbed run has not.
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


# What is compared
# -------------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """A digest of a nest of tensors and plain values, by their bits; clocks are left out."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()[:16]


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        _feed(found, (str(value.dtype), tuple(value.shape)))
        found.update(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
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
    """Digests of what the newest checkpoint of a run holds."""
    state = checkpoint.load(checkpoint.latest(folder / "checkpoint"))  # type: ignore[arg-type]
    table = pandas.read_csv(folder / "history.csv").drop(columns=["seconds", "data_per_second"])
    return {
        **{f"checkpoint: {k}": digest(state[k]) for k in _HELD},
        "history.csv": digest(table.to_numpy()),
    }


def names(folder: Path) -> set[str]:
    """The files in a folder, checkpoints under one name whatever their step."""
    return {
        re.sub(r"^checkpoint/step-\d{9}\b", "checkpoint/step", str(p.relative_to(folder)))
        for p in folder.rglob("*")
    }


# What is run
# ------------------------------------------------------------------------------------------------------------


def train(name: str, folder: Path, data: Path) -> dict[str, Any]:
    """A configuration in this process, from its beginning or from where it was killed: digests of
    all that it ends with.
    """
    # But for one, as the step is traced and guarded, without the compiler's seconds.
    compiled_step.inductor = _INDUCTOR if name == INDUCTOR else graph
    make = CONFIGURATIONS[name] if name in CONFIGURATIONS else RANKS[name][1]
    with vilvm.distributed(minutes=0.5) as world:
        lvm, fitted = fit(make, folder, data)
    found = {
        "parameters": digest(dict(lvm.state_dict())),
        "history": digest(fitted.history.to_rows()),
        "result": digest([fitted.steps, fitted.stopped, fitted.best_step, fitted.skipped]),
    }
    return {"digests": {**found, **(held(folder) if world.is_main else {})}}


def by_command(folder: Path, data: Path) -> dict[str, Any]:
    """The main example by its command line, in this process; resumed if it has got as far as to
    say how.
    """
    vae_mnist.vilvm.fit = partial(vilvm.fit, checkpoint_seconds=0.0)  # type: ignore[attr-defined]
    begun = (folder / "settings.json").exists()
    options = ["--data", "digits", "--epochs", "2", "--latent", "2", "--samples", "10"]
    answer = vae_mnist.main(
        ["--resume", str(folder)] if begun else [*options, "--out", str(folder)]
    )
    results = json.loads((folder / "results.json").read_text())
    pictures = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "figures").iterdir()
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
    """A run that is killed: its work in a folder (and a folder for its data), and the number of
    its processes.
    """

    name: str
    work: Callable[[Path, Path], dict[str, Any]]
    size: int = 1


def cases() -> list[Case]:
    """All of them."""
    return [
        *(Case(name, partial(train, name)) for name in CONFIGURATIONS),
        *(Case(name, partial(train, name), size) for name, (size, _) in RANKS.items()),
        Case(COMMAND, by_command),
    ]


def run(
    case: Case, place: Path, dies_at: int | None = None, kill_after: float | None = None
) -> tuple[list[Ending], int]:
    """One start of a case in ``place/run``, which may be killed: how its processes ended, and how
    many others they left running.
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
        environment = {**{k: str(v) for k, v in world.items()}, "MASTER_ADDR": "127.0.0.1"}
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
    # Of several ranks the first one is killed by itself; the others have to end because it is
    # gone.
    endings = [
        ended(c, o, 300.0, kill_after if rank == 0 else None)
        for rank, (c, o) in enumerate(children)
    ]
    return endings, sum(len(left_running(c)) for c, _ in children)


# The campaign
# -----------------------------------------------------------------------------------------------------------


def kill(case: Case, place: Path, kills: int, draw: random.Random) -> Kills:
    """Kills a case `kills` times, and compares whenever it comes to its end."""
    endings, running = run(case, place / "undisturbed")
    expected, events, seconds = (
        [e.found.get("digests") for e in endings],
        endings[0].found.get("events", 0),
        endings[0].seconds,
    )
    if any(e.how != "done" for e in endings):
        return Kills(
            comparisons=1, trouble=(f"{case.name}: undisturbed it ended with {_words(endings)}",)
        )
    files = names(place / "undisturbed" / "run")
    total, number = Kills(running=running), 0
    while total.kills < kills and total.identical == total.comparisons:
        number += 1
        total += _until_done(
            case,
            place / f"killed-{number}",
            kills - total.kills,
            expected,
            files,
            (events, seconds),
            draw,
        )
    return total


def _until_done(
    case: Case,
    place: Path,
    kills: int,
    expected: list[Any],
    files: set[str],
    length: tuple[int, float],
    draw: random.Random,
) -> Kills:
    """One run, killed again and again until it is done or was killed `kills` times, and then left
    to its end.
    """
    killed = running = 0
    trouble: list[str] = []
    while True:
        moment: dict[str, Any] = {}
        if killed < kills:
            share = draw.random()
            moment = (
                {"dies_at": int(share * length[0])}
                if draw.random() < 0.5
                else {"kill_after": share * length[1]}
            )
        endings, left = run(case, place, **moment)
        running += left
        hows = [e.how for e in endings]
        if (
            hows[0] == "killed"
            and moment
            and all(how in ("killed", "sentence", "done") for how in hows)
        ):
            killed += 1
            continue
        break
    if not killed and hows[0] == "done":  # the moment lay behind its end
        shutil.rmtree(place)
        return Kills(running=running)
    found = [e.found.get("digests") for e in endings]
    same = found == expected
    if not same:
        trouble.append(f"{case.name}: after {killed} kills {_difference(endings, expected)}")
    left_over = (names(place / "run") - files if (place / "run").exists() else set()) | (
        names(place) - {"run"} - _inside(place)
    )
    trouble += [f"{case.name}: {name} is left over" for name in sorted(left_over)]
    trouble += [f"{case.name}: {running} processes go on"] * (running > 0)
    if same:
        shutil.rmtree(place)
    return Kills(killed, killed * same, 1, int(same), len(left_over), running, tuple(trouble))


def _inside(place: Path) -> set[str]:
    return {name for name in names(place) if name.startswith("run/")}


def _difference(endings: list[Ending], expected: list[Any]) -> str:
    if any(e.how != "done" for e in endings):
        return f"it ended with {_words(endings)}"
    parts = {
        k
        for e, right in zip(endings, expected, strict=True)
        for k in right
        if e.found["digests"].get(k) != right[k]
    }
    return f"these differ: {', '.join(sorted(parts))}"


def _words(endings: list[Ending]) -> str:
    return "; ".join(f"{e.how}: {e.message}" if e.message else e.how for e in endings)


def warm_up(folder: Path) -> None:
    """Takes a few steps in this process, so that its children need not import what these import."""
    fit(CONFIGURATIONS["optimizer: Adam"], folder / "warm", folder)
    fit(CONFIGURATIONS["in turn"], folder / "warm in turn", folder)
    compiled_step.inductor = graph
    with redirect_stdout(io.StringIO()):
        fit(CONFIGURATIONS["compiled: Adam"], folder / "warm compiled", folder)


def campaign(kills: int, seed: int = 0, only: str = "", verbose: bool = True) -> dict[str, Kills]:
    """At least `kills` kills, shared out among the cases whose name holds one of the words of
    `only`, by case.
    """
    chosen = [c for c in cases() if not only or any(word in c.name for word in only.split("|"))]
    found: dict[str, Kills] = {}
    with tempfile.TemporaryDirectory(prefix="vilvm-faults-") as base:
        warm_up(Path(base))
        for number, case in enumerate(chosen):
            share = math.ceil(kills * (number + 1) / len(chosen)) - math.ceil(
                kills * number / len(chosen)
            )
            found[case.name] = kill(
                case, Path(base) / str(number), max(1, share), random.Random(f"{seed} {case.name}")
            )
            if verbose:
                print(f"{case.name}: {found[case.name]}", file=sys.stderr, flush=True)
    return found


def rows(found: Mapping[str, Kills]) -> list[Row]:
    """The campaign as rows of the table: runs in one process, by the command line, and of several
    ranks.
    """
    kinds = {
        "one process": [n for n in found if n in CONFIGURATIONS],
        "several ranks": [n for n in found if n in RANKS],
        f"`{COMMAND}`": [n for n in found if n == COMMAND],
    }
    out = []
    for kind, members in kinds.items():
        if not members:
            continue
        total = sum((found[n] for n in members), Kills())
        several = f"{len(members)} configurations, " * (len(members) > 1)
        what = f"SIGKILL at a random moment: {kind}, {several}{total.comparisons} comparisons"
        seen = _SEEN + (
            "; the other ranks end with `PeerLostError`"
            if kind == "several ranks"
            else ", page and figures included" * (kind[0] == "`")
        )
        out.append(Row(what, total.kills, total.survived, seen, total.trouble))
    every = sum(found.values(), Kills())
    out.append(
        Row(
            "files left over after these",
            every.comparisons,
            max(0, every.comparisons - every.leftovers),
            "nothing",
        )
    )
    out.append(
        Row(
            "processes left running after these",
            every.kills,
            max(0, every.kills - every.running),
            "nothing",
        )
    )
    return out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.kills", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only",
        default="",
        help="words, one of which the name of a configuration holds, split by |",
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
                {"total": total._asdict(), "cases": {n: k._asdict() for n, k in found.items()}}
            )
        )
    sys.exit(bool(total.trouble))


if __name__ == "__main__":
    main()
