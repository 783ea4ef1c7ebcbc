"""Checkpoints that were damaged, or forged with all their checksums computed anew, and what
becomes of them.

``forgeries(seed, number)`` resumes from so many of them in child processes and yields what
happened, one by one. A forger who computes checksums can write any state that the run might have
been in, which no check can tell from its own; so a forgery here is one that the run cannot have
been in: other types, counts that do not add up, shapes of another model, moments that no step
leaves.
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

_AT_ONCE, _PATIENCE = 300, 120.0  # forgeries a child process; seconds that one of them may take
_STEPS = 57  # beyond a record, within an epoch


class Outcome(NamedTuple):
    """What became of a forgery.

    Arguments:
        name: of the forgery, the same for the same seed and place.
        outcome: "refused" in one sentence; "identical", where the state that is taken up is the
            undamaged one; or, which must not be, "accepted wrongly", "trace" (another error than a
            sentence) or "crash" (a signal, or no end).
        said: the sentence, or the error.
    """

    name: str
    outcome: str
    said: str


def forgeries(seed: int, number: int) -> Iterator[Outcome]:
    """What becomes of `number` forgeries; the first of a longer series are those of a shorter one."""
    with tempfile.TemporaryDirectory() as folder:
        for name in _RUNS:
            _fit(name, Path(folder) / name)
            _fit(name, Path(folder) / f"{name}, again")
        place = 0
        while place < number:
            for found in _child(Path(folder), seed, place, min(number, place + _AT_ONCE)):
                place += 1
                yield found


def _child(folder: Path, seed: int, start: int, end: int) -> Iterator[Outcome]:
    """The outcomes from `start` on in a process of their own; the last is the one that it died of,
    if it did.
    """
    words = [sys.executable, "-m", __name__, str(folder), str(seed), str(start), str(end)]
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            words, stdout=told, stderr=errors, text=True, cwd=Path(__file__).parents[2]
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE + (end - start))
        process.kill()
        process.wait()
        told.seek(0)
        errors.seek(0)
        lines, last = told.read().splitlines(), errors.read()[-500:]
    yield from (Outcome(*json.loads(line)) for line in lines if line.startswith("["))
    if process.returncode:
        began = [line for line in lines if not line.startswith("[")]
        yield Outcome(began[-1] if began else "start", "crash", f"{process.returncode} {last}")


# The runs that are resumed
# ------------------------------------------------------------------------------------------------


class _Normalised(torch.nn.Module):
    """With batch statistics, a parameter nobody uses, and a guide laid out otherwise in memory."""

    def __init__(self):
        super().__init__()
        self.norm, self.unused = torch.nn.BatchNorm1d(6), torch.nn.Parameter(torch.zeros(3))
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
        "scheduler": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=2e-2, total_steps=200),
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
    """A run of these settings; two of the same name start from other parameters."""
    with seeded(crc32(folder.name.encode()) if not options else 0):
        lvm = (
            VAE(6, 2, encoder_hidden=(8,), decoder_hidden=(8,))
            if "one cycle" in name
            else _Normalised()
        )
    with seeded(0):
        x, y = torch.bernoulli(torch.full((50, 6), 0.4)), torch.bernoulli(torch.full((9, 6), 0.4))
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


# What is done to a checkpoint
# ---------------------------------------------------------------------------------------------


class Parts:
    """A checkpoint in parts, which are written again with the checksums that they then have."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.header = json.loads((folder / "state.json").read_text())
        self.body = self.header.pop("state")
        self.blob = (folder / "tensors.safetensors").read_bytes()
        self.tensors = load(self.blob)

    def write(self, blob: bytes | None = None) -> None:
        """Writes state and tensors, or these bytes in the place of the tensors."""
        self.blob = save(self.tensors) if blob is None else blob
        header = checkpoint._header(self.header["run"], self.header["step"], self.blob, self.body)
        (self.folder / "tensors.safetensors").write_bytes(self.blob)
        (self.folder / "state.json").write_text(json.dumps({**header, "state": self.body}))


def _damage(chance: random.Random, last: Path, other: Path) -> str:
    """Bytes that change without anybody's doing."""
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


# Of these another value is one that the run might have had.
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
# which may be NaN, or without bound
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
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in items:
        yield (*path, key)
        yield from _leaves(part, (*path, key))


def _wrong(chance: random.Random, key: Any, value: Any) -> Any:
    """A value that cannot stand in the place of this one."""
    others = [o for o in _OTHERS if type(o) is not type(value)]
    if isinstance(value, bool):
        return chance.choice([*others, 0.5, 2, 10**400])
    if isinstance(value, int):
        near = (
            []
            if key in _FREE
            else [value + 1, value - 1, -value - 1, 10**18, 2**63, True, float(value) + 0.5]
        )
        return chance.choice([*others, *near, -(10**30), 1e308, math.nan, math.inf])
    if isinstance(value, float):
        bounds = (
            []
            if key in _ANY
            else [math.nan if value == value else 0.0, math.inf if value != math.inf else 0.0]
        )
        return chance.choice([*others, *bounds, False])
    return chance.choice(others if not isinstance(value, str) else [*others, 0, value + "x", ""])


def _forged_state(chance: random.Random, last: Path, other: Path) -> str:
    """Something of state.json that cannot be so."""
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
    """Something of the header that cannot be so, its own checksum computed anew."""
    parts = Parts(last)
    name = chance.choice(["run", "step", "format", "version", "sha256", "more"])
    header = checkpoint._header(parts.header["run"], parts.header["step"], parts.blob, parts.body)
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
    """Whether a tensor is a parameter's or an optimizer's, and not of the generators or of a
    buffer that may be anything.
    """
    return name.startswith(("model", "best", "optimizer")) and "origin" not in name


def _forged_tensor(chance: random.Random, last: Path, other: Path) -> str:
    """A tensor of another shape, type, order or number than it can have."""
    parts = Parts(last)
    tensors = parts.tensors
    name = chance.choice(sorted(tensors))
    t = tensors[name]
    kinds: dict[str, Callable[[], Any]] = {
        "flat and longer": lambda: torch.cat([t.flatten(), t.flatten()[:1]]),
        "one number less": lambda: t.flatten()[:-1],
        "empty": lambda: t.new_zeros(0),
        "one dimension more": lambda: t[None],
        "huge": lambda: t.new_zeros(1 << 20),
        "of another type": lambda: t.to(torch.int64 if t.is_floating_point() else torch.float32),
        "of half precision": lambda: t.to(torch.float16),
        "of double precision": lambda: t.to(torch.float64),
    }
    if t.is_floating_point() and _is_moved(name):
        kinds |= {
            n: partial(torch.full_like, t, v)
            for n, v in (("NaN", math.nan), ("infinite", math.inf), ("−inf", -math.inf))
        }
    if name.endswith(("sq", "running_var", "/step")):
        kinds["negative"] = lambda: -t - 1
    if name.endswith("/step"):
        kinds |= {
            f"step {v}": partial(torch.full_like, t, v)
            for v in (0.0, 1.0, 1e30, 3e38, _STEPS + 1.0, 17.5)
        }
    if t.dim() == 2 and t.shape[0] != t.shape[1]:
        kinds["transposed"] = lambda: t.t().contiguous()
    if name.startswith("rng"):
        kinds["no state"] = lambda: torch.full_like(t, 255)
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
    """A file of tensors that lies about itself."""
    parts = Parts(last)
    length = struct.unpack("<Q", parts.blob[:8])[0]
    head, data = json.loads(parts.blob[8 : 8 + length]), parts.blob[8 + length :]
    name = chance.choice([n for n in head if n != "__metadata__"])
    kind = chance.choice(
        ["length", "twice", "offsets", "shape", "dtype", "deep", "metadata", "digits", "overlap"]
    )
    text = None
    if kind == "length":
        length = chance.choice(
            [0, 1, length - 1, length + 1, 2**32, 2**63, 2**64 - 1, len(parts.blob)]
        )
        text = parts.blob[8 : 8 + struct.unpack("<Q", parts.blob[:8])[0]]
    elif kind == "twice":
        one = json.dumps(head[name])
        text = (
            json.dumps(head)[:-1] + f', "{name}": {one}' * chance.choice([1, 1000]) + "}"
        ).encode()
    elif kind == "offsets":
        head[name]["data_offsets"] = chance.choice(
            [[0, 0], [0, 2**63], [5, 1], [-1, 4], [0], "x", [0, len(data)], [1e308, 2]]
        )
    elif kind == "shape":
        head[name]["shape"] = chance.choice(
            [[2**62, 4], [0], [-1], [2**63], "x", [[1]], [1] * 70, [2**32, 2**32]]
        )
    elif kind == "dtype":
        head[name]["dtype"] = chance.choice(["F8_E4M3", "x", "BOOL", "F4", 3, None, "C64", "U64"])
    elif kind == "deep":
        text = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
    elif kind == "metadata":
        head["__metadata__"] = chance.choice([{"a": "b"}, {"a": 3}, [], 3, {"a": {"b": "c"}}])
    elif kind == "digits":
        text = (
            json.dumps(head)
            .replace('"data_offsets": [0', '"data_offsets": [' + "9" * 5000, 1)
            .encode()
        )
    else:
        head["more"] = dict(head[name])
    text = json.dumps(head).encode() if text is None else text
    parts.write(struct.pack("<Q", length if kind == "length" else len(text)) + text + data)
    return f"container {name} {kind}"


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
        "an infinity": whole.replace('"version": 3', '"version": Infinity'),
    }
    kind = chance.choice(list(kinds))
    content = kinds[kind].encode("utf-8", "surrogatepass")
    if chance.random() < 0.1:
        kind, content = f"{kind}, UTF-16", kinds[kind].encode("utf-16", "surrogatepass")
    file.write_bytes(content)
    return f"text of {kind}"


def _swapped(chance: random.Random, last: Path, other: Path) -> str:
    """Parts of another run of the same settings, or of the checkpoint before."""
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
    """Something else than a file or a folder where one is expected."""
    run = last.parents[1]
    place = chance.choice(
        [last / "state.json", last / "tensors.safetensors", last, last.parent, run / "run.json"]
    )
    kind = chance.choice(
        ["gone", "pipe", "loop", "folder", "file", "dangling", "device", "many levels"]
    )
    if place in (last, last.parent) and kind in ("gone", "many levels", "folder"):
        kind = "file"  # else a new run begins, or that before is taken up
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "loop":
        place.symlink_to(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "file":
        place.write_text(
            chance.choice(
                ["", "{}", '{"run": 3}', '{"run": "x"}', "[" * 200_000, "9" * 5000, "\0"]
            )
        )
    elif kind == "dangling":
        place.symlink_to(run / "nowhere")
    elif kind == "device":
        place.symlink_to(os.devnull)
    elif kind == "many levels":
        (place / "a" / "b").mkdir(parents=True)
    return f"{place.relative_to(run)}: {kind}"


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
# ----------------------------------------------------------------------------------------------------------


_restore = Checkpoints.restore


class _Taken(Exception):
    """Leaves ``fit`` after a state was taken up, for the run is no fresh one any more."""


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
        said = str(error)
        return ("refused" if "\n" not in said and len(said) < 1500 else "trace"), said
    except Exception as error:
        return "trace", f"{type(error).__name__}: {error}"
    if saved.run.state.step < 0 or saved._resumed_at < 0:
        return "accepted wrongly", "the run starts anew"
    return ("identical", "") if _digest(saved) == proper else ("accepted wrongly", "another state")


def _child_main(base: Path, seed: int, start: int, end: int) -> None:
    """Prints the name of every forgery before it is tried, and its outcome thereafter."""
    torch.set_num_threads(1)
    proper: dict[str, str] = {}
    for name in _RUNS:
        _within(name, base, partial(_note, proper, name))
    places = list(range(start, end))
    while places:
        names = list(_RUNS)
        name = names[places[0] // 50 % len(names)]
        _within(name, base, partial(_try, places, names, seed, base, proper))


def _note(proper: dict[str, str], name: str, saved: Checkpoints) -> None:
    _restore(saved)
    proper[name] = _digest(saved)
    raise _Taken


def _try(
    places: list[int],
    names: list[str],
    seed: int,
    base: Path,
    proper: dict[str, str],
    saved: Checkpoints,
) -> None:
    """Forgeries one after the other, until one is accepted, or the next is of another run."""
    name, folder = names[places[0] // 50 % len(names)], saved.run.spec.folder
    assert folder is not None
    while places and names[places[0] // 50 % len(names)] == name:
        place = places.pop(0)
        for inside in folder.iterdir():
            shutil.rmtree(
                inside
            ) if inside.is_dir() and not inside.is_symlink() else inside.unlink()
        shutil.copytree(base / name, folder, dirs_exist_ok=True)
        chance, last = random.Random(f"{seed} {place}"), checkpoint.latest(folder / "checkpoint")
        assert last is not None
        told = chance.choice(_KINDS)(chance, last, base / f"{name}, again")
        print(f"{place} {told}".encode("ascii", "replace").decode(), flush=True)
        outcome, said = _judge(saved, proper[name])
        print(json.dumps([f"{place} {name}: {told}", outcome, said]), flush=True)
        if outcome in ("identical", "accepted wrongly"):
            raise _Taken
    raise _Taken


def _within(name: str, base: Path, act: Callable[[Checkpoints], None]) -> None:
    """Does something with a fresh run, in the place of its steps."""
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
