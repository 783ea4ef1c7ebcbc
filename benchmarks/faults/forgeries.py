"""Damaged checkpoints, and forged ones with recomputed checksums: whether ``fit`` refuses them.

``forgeries(seed, number)`` resumes from `number` of them in child processes and yields the
outcomes one by one. No check can detect a forged state that the run might have been in. So the
forgeries are states that the run cannot have been in: other types, inconsistent counts, shapes of
another model, optimizer moments that no step produces.
"""

import hashlib
import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from zlib import crc32

import torch
from pyro.infer import Trace_ELBO
from safetensors.torch import load, save
from torch import Tensor

import vilvm
from vilvm._runtime.random import rng_state, seeded
from vilvm.models.vae import VAE
from vilvm.objectives import Annealed
from vilvm.training import by_name, checkpoint
from vilvm.training._loop import Loop
from vilvm.training._state import Checkpoints, state_dict

__all__ = ["Outcome", "Parts", "forgeries"]

_AT_ONCE, _PATIENCE = (
    300,
    120.0,
)  # forgeries a child process; seconds that one of them may take
_STEPS = 57  # beyond a record, within an epoch


class Outcome(NamedTuple):
    """The outcome of resuming from a forgery.

    Arguments:
        name: of the forgery, the same for the same seed and position.
        outcome: "refused" with one sentence, or "identical" if the loaded state is the undamaged
            one; the failures are "accepted wrongly", "trace" (an error that is no sentence) and
            "crash" (a signal, or a timeout).
        message: the sentence, or the error.
    """

    name: str
    outcome: str
    message: str


def forgeries(seed: int, number: int) -> Iterator[Outcome]:
    """The outcomes of `number` forgeries; a longer series begins with the shorter one."""
    with tempfile.TemporaryDirectory() as folder:
        for name in _RUNS:
            _fit(name, Path(folder) / name)
            _fit(name, Path(folder) / f"{name}, again")
        place = 0
        while place < number:
            for found in _child(
                Path(folder), seed, place, min(number, place + _AT_ONCE)
            ):
                place += 1
                yield found


def _child(folder: Path, seed: int, start: int, end: int) -> Iterator[Outcome]:
    """The outcomes from `start` on, in one child process; the last one may be its crash."""
    words = [
        sys.executable,
        "-m",
        __name__,
        str(folder),
        str(seed),
        str(start),
        str(end),
    ]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=errors,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE + (end - start))
        process.kill()
        process.wait()
        output.seek(0)
        errors.seek(0)
        lines, last = output.read().splitlines(), errors.read()[-500:]
    yield from (Outcome(*json.loads(line)) for line in lines if line.startswith("["))
    if process.returncode:
        began = [line for line in lines if not line.startswith("[")]
        yield Outcome(
            began[-1] if began else "start", "crash", f"{process.returncode} {last}"
        )


# The runs that are resumed
# -------------------------------------------------------------------------------------------------


class _Normalised(torch.nn.Module):
    """Has batch statistics, an unused parameter, and a transposed weight in memory."""

    def __init__(self):
        super().__init__()
        self.norm, self.unused = (
            torch.nn.BatchNorm1d(6),
            torch.nn.Parameter(torch.zeros(3)),
        )
        self.vae = VAE(6, 2, encoder_hidden=(8,), decoder_hidden=(8,))
        assert isinstance(self.vae.encoder, torch.nn.Sequential)
        first = self.vae.encoder[0]
        assert isinstance(first, torch.nn.Linear)
        first.weight = torch.nn.Parameter(first.weight.detach().t().contiguous().t())

    def model(self, x: Tensor) -> None:
        self.vae.model(x)

    def guide(self, x: Tensor) -> None:
        self.vae.guide(self.norm(x))


def _annealed() -> dict[str, Any]:
    return {
        "optimizer": partial(torch.optim.Adam, lr=1e-2, fused=True),
        "scheduler": partial(
            torch.optim.lr_scheduler.OneCycleLR, max_lr=2e-2, total_steps=200
        ),
        "objective": Annealed(Trace_ELBO(), warmup=30),
        "clip": 5.0,
    }


def _by_name() -> dict[str, Any]:
    rates = by_name(
        partial(torch.optim.SGD, momentum=0.9),
        lambda name: {"lr": 1e-4 if "norm" in name else 1e-3},
    )
    return {
        "optimizer": rates,
        "scheduler": partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=1),
    }


_RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "Adam, one cycle, annealed": _annealed,
    "momentum by name, plateau": _by_name,
    "AdamW, amsgrad": lambda: {"optimizer": partial(torch.optim.AdamW, amsgrad=True)},
}


def _fit(name: str, folder: Path, **options: Any) -> None:
    """A run of these settings; two runs of the same name start from different parameters."""
    with seeded(crc32(folder.name.encode()) if not options else 0):
        lvm = (
            VAE(6, 2, encoder_hidden=(8,), decoder_hidden=(8,))
            if "one cycle" in name
            else _Normalised()
        )
    with seeded(0):
        x, y = (
            torch.bernoulli(torch.full((50, 6), 0.4)),
            torch.bernoulli(torch.full((9, 6), 0.4)),
        )
    held_out = None if "amsgrad" in name else y
    settings = {
        "steps": _STEPS,
        "batch_size": 20,
        "validation": held_out,
        "progress": False,
        "checkpoint_seconds": 1e9,
        **_RUNS[name](),
        **options,
    }
    vilvm.fit(lvm, x, run_dir=folder, **settings)


# The changes of a checkpoint
# -------------------------------------------------------------------------------------------------


class Parts:
    """The parts of a checkpoint, which are written with recomputed checksums."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.header = json.loads((folder / "state.json").read_text())
        self.body = self.header.pop("state")
        self.blob = (folder / "tensors.safetensors").read_bytes()
        self.tensors = load(self.blob)

    def write(self, blob: bytes | None = None) -> None:
        """Writes state and tensors, or these bytes in place of the tensors."""
        self.blob = save(self.tensors) if blob is None else blob
        header = checkpoint._header(
            self.header["run"], self.header["step"], self.blob, self.body
        )
        (self.folder / "tensors.safetensors").write_bytes(self.blob)
        (self.folder / "state.json").write_text(
            json.dumps({**header, "state": self.body})
        )


def _damage(chance: random.Random, last: Path, other: Path) -> str:
    """Random changes of bytes, with the old checksums."""
    name = chance.choice(["tensors.safetensors", "state.json"])
    data = bytearray((last / name).read_bytes())
    at, length = chance.randrange(len(data)), chance.choice([1, 8, 512])
    kind = chance.choice(["a bit", "cut off", "taken out", "put in", "zeroed", "noise"])
    if kind == "a bit":
        data[at] ^= 1 << chance.randrange(8)
    elif kind == "cut off":
        del data[at:]
    elif kind == "taken out":
        del data[at : at + length]
    elif kind == "put in":
        data[at:at] = chance.randbytes(length)
    elif kind == "zeroed":
        data[at : at + length] = bytes(len(data[at : at + length]))
    else:
        data[at : at + length] = chance.randbytes(len(data[at : at + length]))
    (last / name).write_bytes(data)
    return f"{name}: {kind} at {at}"


# Fields whose value may be another one in a valid run.
_FREE = {
    "seconds",
    "data_per_second",
    "elbo",
    "rate",
    "distortion",
    "gradient_norm",
    "loss",
    "norm",
    "learning_rate",
}
_FREE |= {"compiled", "hooked", "_step_count", "validation_se", "eps"}
# fields that may be NaN or infinite
_ANY = {"rate", "distortion", "validation_se", "learning_rate"}
_OTHERS: list[Any] = [
    None,
    "x",
    [],
    {},
    [1],
    {"!": "tensor", "name": "x"},
    {"!": "x"},
    {"!": "tuple", "items": 3},
]


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within nested dicts and lists."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, part in items:
        yield (*path, key)
        yield from _leaves(part, (*path, key))


def _wrong(chance: random.Random, key: Any, value: Any) -> Any:
    """A value that cannot replace this one."""
    others = [o for o in _OTHERS if type(o) is not type(value)]
    return chance.choice([*others, *_wrong_alternatives(key, value)])


def _wrong_alternatives(key: Any, value: Any) -> list[Any]:
    """Wrong values that depend on the right one."""
    match value:
        case bool():
            return [0.5, 2, 10**400]
        case int():
            near = [
                value + 1,
                value - 1,
                -value - 1,
                10**18,
                2**63,
                True,
                float(value) + 0.5,
            ]
            return [*near * (key not in _FREE), -(10**30), 1e308, math.nan, math.inf]
        case float():
            not_finite = [
                0.0 if math.isnan(value) else math.nan,
                0.0 if value == math.inf else math.inf,
            ]
            return [*not_finite * (key not in _ANY), False]
        case str():
            return [0, value + "x", ""]
        case _:
            return []


def _forged_state(chance: random.Random, last: Path, other: Path) -> str:
    """A wrong entry of state.json."""
    parts = Parts(last)
    names = [p for p in _leaves(parts.body) if "order" not in p]
    path = chance.choice(names)
    place, key = parts.body, path[-1]
    for step in path[:-1]:
        place = place[step]
    kind = chance.choice(["other", "other", "other", "gone", "more", "twice"])
    if kind == "gone":
        del place[key]
    elif kind == "more" and isinstance(place, dict):
        place["more"] = place[key]
    elif kind == "twice" and isinstance(place, list):
        place.insert(key, place[key])
    else:
        kind, place[key] = "other", _wrong(chance, key, place[key])
    parts.write()
    shown = f" = {place[key]!r:.30}" if kind == "other" else ""
    return f"state {'/'.join(map(str, path))} {kind}{shown}"


def _forged_header(chance: random.Random, last: Path, other: Path) -> str:
    """A wrong entry of the header."""
    parts = Parts(last)
    name = chance.choice(["run", "step", "format", "version", "sha256", "more"])
    header = checkpoint._header(
        parts.header["run"], parts.header["step"], parts.blob, parts.body
    )
    if name == "run":
        run: Any = chance.choice(["0" * 32, "", 3, None, [], {}])
        header = checkpoint._header(run, parts.header["step"], parts.blob, parts.body)
    elif name == "step":
        header[name] = _wrong(chance, name, header[name])
    else:
        header[name] = chance.choice(
            [None, 0, "x", [], {}, 1e308, {"tensors": 1, "state": 2}, 10**30]
        )
    (last / "state.json").write_text(json.dumps({**header, "state": parts.body}))
    return f"header {name} = {header[name]!r:.30}"


def _is_moved(name: str) -> bool:
    """Whether a tensor belongs to a parameter or an optimizer, which are always finite."""
    return name.startswith(("model", "best", "optimizer")) and "origin" not in name


def _forged_tensor(chance: random.Random, last: Path, other: Path) -> str:
    """A tensor with a wrong shape, type, order or value."""
    parts = Parts(last)
    tensors = parts.tensors
    name = chance.choice(sorted(tensors))
    t = tensors[name]
    kinds = {**_wrong_shapes_and_types(t), **_wrong_numbers(name, t)}
    kind = chance.choice([*kinds, "gone", "renamed", "another order", "for another"])
    if kind in kinds:
        tensors[name] = kinds[kind]()
    elif kind == "gone":
        del tensors[name]
    elif kind == "renamed":
        tensors[f"{name}x"] = tensors.pop(name)
    elif kind == "another order":
        _reorder(parts.body, name, t.dim(), chance)
    else:
        fitting = [n for n, v in tensors.items() if v.shape != t.shape]
        tensors[name] = tensors[chance.choice(sorted(fitting))].clone()
    parts.write()
    return f"tensor {name} {kind}"


def _wrong_shapes_and_types(t: Tensor) -> dict[str, Callable[[], Tensor]]:
    other = torch.int64 if t.is_floating_point() else torch.float32
    return {
        "flat and longer": lambda: torch.cat([t.flatten(), t.flatten()[:1]]),
        "one number less": lambda: t.flatten()[:-1],
        "empty": lambda: t.new_zeros(0),
        "one dimension more": lambda: t[None],
        "huge": lambda: t.new_zeros(1 << 20),
        "of another type": lambda: t.to(other),
        "of half precision": lambda: t.to(torch.float16),
        "of double precision": lambda: t.to(torch.float64),
    }


def _wrong_numbers(name: str, t: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Wrong numbers of a tensor, by its part in the state."""
    kinds: dict[str, Callable[[], Tensor]] = {}
    fill = partial(partial, torch.full_like, t)
    if t.is_floating_point() and _is_moved(name):
        kinds |= {
            "NaN": fill(math.nan),
            "infinite": fill(math.inf),
            "−inf": fill(-math.inf),
        }
    if name.endswith(("sq", "running_var", "/step")):
        kinds["negative"] = lambda: -t - 1
    if name.endswith("/step"):
        kinds |= {
            f"step {v}": fill(v) for v in (0.0, 1.0, 1e30, 3e38, _STEPS + 1.0, 17.5)
        }
    if t.dim() == 2 and t.shape[0] != t.shape[1]:
        kinds["transposed"] = lambda: t.t().contiguous()
    if name.startswith("rng"):
        kinds["no state"] = fill(255)
    return kinds


def _reorder(body: Any, name: str, dims: int, chance: random.Random) -> None:
    order = chance.choice(
        [
            list(range(dims))[::-1],
            [0] * dims,
            [0, 7],
            [-1],
            "x",
            3,
            {"!": "x"},
            [0.5],
            [None] * dims,
            [10**30],
        ]
    )
    for path in _leaves(body):
        place = body
        for key in path[:-1]:
            place = place[key]
        if path[-1] == "name" and place["name"] == name and "!" in place:
            place["order"] = order
            return


def _forged_container(chance: random.Random, last: Path, other: Path) -> str:
    """A file of tensors whose header is wrong."""
    parts = Parts(last)
    length = struct.unpack("<Q", parts.blob[:8])[0]
    head, data = json.loads(parts.blob[8 : 8 + length]), parts.blob[8 + length :]
    name = chance.choice([n for n in head if n != "__metadata__"])
    kind = chance.choice(
        [
            "length",
            "twice",
            "offsets",
            "shape",
            "dtype",
            "deep",
            "metadata",
            "digits",
            "overlap",
        ]
    )
    fields = _wrong_fields(len(data))
    if kind in fields:
        field, values = fields[kind]
        head[name][field] = chance.choice(values)
    elif kind == "metadata":
        head["__metadata__"] = chance.choice(
            [{"a": "b"}, {"a": 3}, [], 3, {"a": {"b": "c"}}]
        )
    elif kind == "overlap":
        head["more"] = dict(head[name])
    text = json.dumps(head)
    if kind == "twice":
        one = f', "{name}": {json.dumps(head[name])}'
        text = text[:-1] + one * chance.choice([1, 1000]) + "}"
    elif kind == "deep":
        text = '{"a":' * 200_000 + "1" + "}" * 200_000
    elif kind == "digits":
        text = text.replace('"data_offsets": [0', '"data_offsets": [' + "9" * 5000, 1)
    content, size = text.encode(), len(text.encode())
    if kind == "length":
        content, size = (
            parts.blob[8 : 8 + length],
            chance.choice(_wrong_lengths(length, parts)),
        )
    parts.write(struct.pack("<Q", size) + content + data)
    return f"container {name} {kind}"


def _wrong_fields(num_bytes: int) -> dict[str, tuple[str, list[Any]]]:
    """By kind, a field of a tensor's header and wrong values of it."""
    offsets = [
        [0, 0],
        [0, 2**63],
        [5, 1],
        [-1, 4],
        [0],
        "x",
        [0, num_bytes],
        [1e308, 2],
    ]
    shapes = [[2**62, 4], [0], [-1], [2**63], "x", [[1]], [1] * 70, [2**32, 2**32]]
    types = ["F8_E4M3", "x", "BOOL", "F4", 3, None, "C64", "U64"]
    return {
        "offsets": ("data_offsets", offsets),
        "shape": ("shape", shapes),
        "dtype": ("dtype", types),
    }


def _wrong_lengths(length: int, parts: Parts) -> list[int]:
    return [0, 1, length - 1, length + 1, 2**32, 2**63, 2**64 - 1, len(parts.blob)]


def _forged_text(chance: random.Random, last: Path, other: Path) -> str:
    """A state.json that is hard to parse."""
    file, deep = last / "state.json", chance.choice([900, 5000, 200_000])
    whole = file.read_text()
    body = whole[whole.index('"state":') + 8 : -1]
    kinds = {
        "a nest of lists": "[" * deep + "]" * deep,
        "a nest of dicts": '{"a":' * deep + "1" + "}" * deep,
        "an open nest": "[" * deep,
        "a nest as state": whole.replace(body, "[" * deep + "]" * deep),
        "a nest within": whole[:-2] + ', "x": ' + "[" * deep + "]" * deep + "}}",
        "5,000 digits": whole.replace('"position": ', '"position": ' + "9" * 5000),
        "1e999": whole.replace('"position": ', '"position": 1e999, "x": '),
        "a lone surrogate": whole[:-1] + ', "\\ud800": "\\udfff"}',
        "a key twice": whole[:-1] + ', "step": 1}',
        "a mark of byte order": "\ufeff" + whole,
        "null": "null",
        "a list": f"[{whole}]",
        "nothing": "",
        "spaces": whole + " " * 100_000,
        "two": whole + whole,
        "a zero byte": whole[:50] + "\0" + whole[50:],
        "an infinity": whole.replace('"version": 4', '"version": Infinity'),
    }
    kind = chance.choice(list(kinds))
    content = kinds[kind].encode("utf-8", "surrogatepass")
    if chance.random() < 0.1:
        kind, content = f"{kind}, UTF-16", kinds[kind].encode("utf-16", "surrogatepass")
    file.write_bytes(content)
    return f"text of {kind}"


def _swapped(chance: random.Random, last: Path, other: Path) -> str:
    """Parts of another run with the same settings, or of the previous checkpoint."""
    run, theirs = last.parents[1], checkpoint.latest(other / "checkpoint")
    assert theirs is not None
    first = last.with_name("step-000000000")
    kind = chance.choice(
        [
            "tensors",
            "state",
            "whole",
            "all",
            "identity",
            "the first's tensors",
            "the first under its name",
            "renamed",
        ]
    )
    if kind in ("tensors", "state"):
        name = {"tensors": "tensors.safetensors", "state": "state.json"}[kind]
        shutil.copy(theirs / name, last / name)
    elif kind in ("whole", "all"):
        for step in [last, first] if kind == "all" else [last]:
            shutil.copytree(theirs.with_name(step.name), step, dirs_exist_ok=True)
    elif kind == "identity":
        shutil.copy(other / "run.json", run / "run.json")
    elif kind == "the first's tensors":
        shutil.copy(first / "tensors.safetensors", last / "tensors.safetensors")
    elif kind == "the first under its name":
        shutil.copytree(first, last, dirs_exist_ok=True)
        if chance.random() < 0.5:  # and the header says so
            parts = Parts(last)
            parts.header["step"] = _STEPS
            parts.write()
    else:
        last.rename(last.with_name(f"step-{chance.randrange(_STEPS + 1, 10**9):09d}"))
    return f"swap of {kind}"


def _of_another_kind(chance: random.Random, last: Path, other: Path) -> str:
    """Something other than the expected file or folder."""
    run = last.parents[1]
    place = chance.choice(
        [
            last / "state.json",
            last / "tensors.safetensors",
            last,
            last.parent,
            run / "run.json",
        ]
    )
    contents = ["", "{}", '{"run": 3}', '{"run": "x"}', "[" * 200_000, "9" * 5000, "\0"]
    kinds: dict[str, Callable[[], Any]] = {
        "gone": lambda: None,
        "pipe": lambda: os.mkfifo(place),
        "loop": lambda: place.symlink_to(place),
        "folder": place.mkdir,
        "file": lambda: place.write_text(chance.choice(contents)),
        "dangling": lambda: place.symlink_to(run / "nowhere"),
        "device": lambda: place.symlink_to(os.devnull),
        "many levels": lambda: (place / "a" / "b").mkdir(parents=True),
    }
    kind = chance.choice(list(kinds))
    if place in (last, last.parent) and kind in ("gone", "many levels", "folder"):
        kind = "file"  # else a new run starts, or the previous checkpoint is loaded
    _remove(place)
    kinds[kind]()
    return f"{place.relative_to(run)}: {kind}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


_KINDS = [
    _damage,
    _forged_state,
    _forged_state,
    _forged_header,
    _forged_tensor,
    _forged_tensor,
    _forged_container,
    _forged_text,
]
_KINDS += [_swapped, _of_another_kind]


# A child process
# -------------------------------------------------------------------------------------------------


_restore = Checkpoints.restore


class _Taken(Exception):
    """Leaves ``fit`` after a state was loaded."""


def _digest(saved: Checkpoints) -> str:
    tensors: dict[str, Tensor] = {}
    run = saved.run
    generators = [g[None] for g in rng_state(run.spec.device)]
    body = checkpoint.pack(state_dict(run, generators), tensors)
    return hashlib.sha256(json.dumps(body).encode() + save(tensors)).hexdigest()


def _judge(saved: Checkpoints, proper: str) -> tuple[str, str]:
    try:
        _restore(saved)
    except vilvm.CheckpointError as error:
        message = str(error)
        sentence = "\n" not in message and len(message) < 1500
        return ("refused" if sentence else "trace"), message
    except Exception as error:
        return "trace", f"{type(error).__name__}: {error}"
    if saved.run.state.step < 0 or saved._resumed_at < 0:
        return "accepted wrongly", "the run starts anew"
    if _digest(saved) != proper:
        return "accepted wrongly", "another state"
    return "identical", ""


def _child_main(base: Path, seed: int, start: int, end: int) -> None:
    """Prints the name of every forgery before its trial, and the outcome after it."""
    torch.set_num_threads(1)
    proper: dict[str, str] = {}
    for name in _RUNS:
        _within(name, base, partial(_note, proper, name))
    places = list(range(start, end))
    while places:
        names = list(_RUNS)
        name = names[places[0] // 50 % len(names)]
        trial = partial(
            _try, places=places, names=names, seed=seed, base=base, proper=proper
        )
        _within(name, base, trial)


def _note(proper: dict[str, str], name: str, saved: Checkpoints) -> None:
    _restore(saved)
    proper[name] = _digest(saved)
    raise _Taken


def _try(
    saved: Checkpoints,
    *,
    places: list[int],
    names: list[str],
    seed: int,
    base: Path,
    proper: dict[str, str],
) -> None:
    """Tries forgeries until one is accepted or the next one is of another run."""
    name, folder = names[places[0] // 50 % len(names)], saved.run.spec.folder
    assert folder is not None
    while places and names[places[0] // 50 % len(names)] == name:
        place = places.pop(0)
        for inside in folder.iterdir():
            _remove(inside)
        shutil.copytree(base / name, folder, dirs_exist_ok=True)
        chance, last = (
            random.Random(f"{seed} {place}"),
            checkpoint.latest(folder / "checkpoint"),
        )
        assert last is not None
        forgery = chance.choice(_KINDS)(chance, last, base / f"{name}, again")
        print(f"{place} {forgery}".encode("ascii", "replace").decode(), flush=True)
        outcome, message = _judge(saved, proper[name])
        print(json.dumps([f"{place} {name}: {forgery}", outcome, message]), flush=True)
        if outcome in ("identical", "accepted wrongly"):
            raise _Taken
    raise _Taken


def _within(name: str, base: Path, act: Callable[[Checkpoints], None]) -> None:
    """Calls `act` with a fresh run, in place of its training."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        shutil.copytree(base / name, folder, dirs_exist_ok=True)
        patches.enter_context(
            patch.object(Loop, "train", lambda loop, progress: act(loop.checkpoints))
        )
        patches.enter_context(patch.object(Checkpoints, "restore", lambda saved: None))
        with suppress(_Taken):
            _fit(name, Path(folder), resume=True)


if __name__ == "__main__":
    _child_main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
