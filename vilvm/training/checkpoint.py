"""Checkpoints: tensors as safetensors, the rest as JSON, nothing pickled.

A checkpoint is a folder ``step-000000469`` that holds ``tensors.safetensors`` and ``state.json``.
The JSON carries SHA-256 checksums of both and the identity of the run, and a checksum over these
and the step, so that no part of one checkpoint fits another. The run folder holds that identity
too, in ``run.json``. A checkpoint is written under another name and renamed when it is whole and
on the disk, and the one before it is kept until then, so a process that is killed at any moment
leaves at least one good checkpoint behind.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from vilvm._runtime.files import read, write_atomic, write_json

__all__ = [
    "CheckpointError",
    "identify",
    "latest",
    "load",
    "pack",
    "save",
    "spoiled",
    "sweep",
    "unpack",
]

_FORMAT, _VERSION = "vilvm checkpoint", 3
_TENSORS, _STATE, _RUN = "tensors.safetensors", "state.json", "run.json"
_KEPT = 2
# What parsing of altered bytes may raise.
_MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or must not be read; the message says which file, why,
    and what to do.
    """


def save(folder: Path, step: int, state: Any) -> Path:
    """Writes `state`, a nest of dicts, lists, tensors and plain values, as the checkpoint of
    `step`; returns its folder.

    Older checkpoints beyond the last good one are removed.

    Raises:
        CheckpointError: the state holds what is neither a tensor nor plain data.
        OSError: it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    body = pack(state, tensors)
    blob = save_tensors(tensors)
    run = identify(folder) or _begin(folder)
    header = _header(run, step, blob, body)
    target = folder / f"step-{step:09d}"
    partial = folder / f".step-{step:09d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    write_atomic(partial / _TENSORS, blob)
    write_atomic(partial / _STATE, json.dumps({**header, "state": body}, ensure_ascii=False))
    _sync(partial)
    for old in [target] * target.exists() + [c for c in _all(folder) if c < target][: 1 - _KEPT]:
        # in one stroke, so that no half checkpoint bears a checkpoint's name
        old.rename(old.with_name(f".{old.name}.removed"))
    partial.rename(target)
    _sync(folder)
    sweep(folder)
    return target


def sweep(folder: Path) -> None:
    """Removes what a process that was killed has left of checkpoints being written or removed."""
    for removed in folder.glob(".step-*"):
        shutil.rmtree(removed, ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, or None.

    Raises:
        CheckpointError: `folder` is there and is no folder that can be read.
    """
    found = _all(folder)
    return found[-1] if found else None


def load(checkpoint: Path, device: torch.device | str = "cpu") -> Any:
    """The state that ``save`` wrote, tensors on `device`.

    Raises:
        CheckpointError: the checkpoint is truncated, altered, of another run, of another program,
            or of another version.
    """
    try:
        text, blob = read(checkpoint / _STATE), read(checkpoint / _TENSORS)
    except FileNotFoundError as error:
        raise spoiled(checkpoint, f"it lacks {Path(error.filename).name}") from None
    except OSError as error:
        raise spoiled(
            checkpoint, f"it cannot be read ({error.strerror}: {error.filename})"
        ) from None
    try:
        header = json.loads(text.decode())
        body = header.pop("state") if isinstance(header, dict) and "state" in header else None
    except _MALFORMED:
        raise spoiled(checkpoint, f"{_STATE} is truncated or altered") from None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise spoiled(checkpoint, "it is not a checkpoint of vilvm")
    if header.get("version") != _VERSION:
        raise CheckpointError(
            f"Checkpoint {checkpoint} has version {str(header.get('version'))[:20]}, this vilvm "
            f"reads version {_VERSION}: "
            "use the vilvm that wrote it."
        )
    try:
        _check_header(checkpoint, header, blob, body)
        tensors = {name: tensor.to(device) for name, tensor in load_tensors(blob).items()}
        state = unpack(body, tensors)
    except CheckpointError:
        raise
    except _MALFORMED:
        raise spoiled(checkpoint, "it is altered, for its parts do not fit together") from None
    if tensors:
        raise spoiled(
            checkpoint, f"it is altered, for its state lacks the tensor {min(tensors)[:60]!r}"
        )
    return state


def _check_header(checkpoint: Path, header: dict[str, Any], blob: bytes, body: Any) -> None:
    """Raises CheckpointError unless header, tensors and state are of one checkpoint, of this step
    and of this run.
    """
    proper = _header(header["run"], header["step"], blob, body)
    if header["sha256"]["tensors"] != proper["sha256"]["tensors"]:
        raise spoiled(checkpoint, f"{_TENSORS} is truncated or altered (its checksum differs)")
    if header["sha256"]["state"] != proper["sha256"]["state"]:
        raise spoiled(checkpoint, f"{_STATE} is altered (its checksum differs)")
    if header != proper:
        raise spoiled(checkpoint, f"the header of {_STATE} is altered (its checksum differs)")
    if checkpoint.name != f"step-{header['step']:09d}":
        raise spoiled(checkpoint, f"it is that of step {header['step']} under another name")
    if header["run"] != identify(checkpoint.parent):
        raise spoiled(checkpoint, f"it is of another run than {checkpoint.parents[1]}")


def _header(run: str, step: int, blob: bytes, body: Any) -> dict[str, Any]:
    sums = {
        "tensors": _sha256(blob),
        "state": _sha256(json.dumps(body, ensure_ascii=False).encode()),
    }
    header = {"format": _FORMAT, "version": _VERSION, "run": run, "step": step, "sha256": sums}
    return {**header, "sha256": {**sums, "header": _sha256(json.dumps(header).encode())}}


def spoiled(checkpoint: Path, what: str) -> CheckpointError:
    """The error of a checkpoint that must not be read."""
    before = [c for c in _all(checkpoint.parent) if c < checkpoint]
    advice = (
        f"Remove that folder to resume from {before[-1].name}." if before else "Start a new run."
    )
    return CheckpointError(f"Checkpoint {checkpoint}: {what}. {advice}")


def identify(folder: Path) -> str | None:
    """Which run the checkpoints in `folder` are of, by the run folder around it; None of a run
    that has none yet.

    Raises:
        CheckpointError: there are checkpoints, and no identity.
    """
    file = folder.parent / _RUN
    try:
        found = json.loads(read(file))["run"]
        if re.fullmatch("[0-9a-f]{32}", found):
            return found
        why = "is altered"
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    except _MALFORMED:
        why = "is altered"
    if latest(folder) is None:
        return None
    raise CheckpointError(
        f"{file} {why}, which says what run the checkpoints beside it are of: restore it, or "
        "start a new run."
    )


def _begin(folder: Path) -> str:
    """A new identity in the run folder."""
    run = secrets.token_hex(16)  # of the system, for torch's generators are the run's
    write_json(folder.parent / _RUN, {"run": run})
    return run


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """`value` as JSON, its tensors moved to `tensors` and named by their path.

    Raises:
        CheckpointError: it holds something that is neither a tensor nor plain data.
    """
    if isinstance(value, Tensor):
        # keys 1 and "1" have one path
        name = path if path not in tensors else f"{path}#{len(tensors)}"
        # A fused optimizer walks through parameter and state side by side in memory: both must be
        # laid out as they were.
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        order = [] if value.is_contiguous() else order
        tensors[name] = (
            (value.detach().permute(order) if order else value.detach()).cpu().contiguous().clone()
        )
        return {"!": "tensor", "name": name, **({"order": order} if order else {})}
    if isinstance(value, np.generic):
        return pack(value.item(), tensors, path)
    if isinstance(value, tuple):
        return {
            "!": "tuple",
            "items": [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(value)],
        }
    if isinstance(value, list):
        return [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
    if isinstance(value, dict):
        kind = "counter" if isinstance(value, Counter) else "dict"
        if kind == "dict" and all(isinstance(k, str) and k != "!" for k in value):
            return {k: pack(v, tensors, f"{path}/{k}") for k, v in value.items()}
        return {
            "!": kind,
            "items": [
                [pack(k, tensors), pack(v, tensors, f"{path}/{k}")] for k, v in value.items()
            ],
        }
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"A checkpoint cannot hold {path} = {value!r}: only tensors, numbers, strings, and lists "
        "and dicts of them."
    )


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of ``pack``; every tensor is taken out of `tensors` as it is met.

    Raises:
        LookupError, TypeError, ValueError: `value` is not what ``pack`` made.
    """
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    kinds: dict[str, Callable[[], Any]] = {
        "tensor": lambda: _laid_out(tensors.pop(value["name"]), value.get("order")),
        "tuple": lambda: tuple(unpack(_list(value["items"]), tensors)),
        "dict": lambda: {unpack(k, tensors): unpack(v, tensors) for k, v in _list(value["items"])},
        "counter": lambda: Counter(
            {unpack(k, tensors): unpack(v, tensors) for k, v in _list(value["items"])}
        ),
    }
    return (
        kinds[value["!"]]() if "!" in value else {k: unpack(v, tensors) for k, v in value.items()}
    )


def _list(items: Any) -> list[Any]:
    if not isinstance(items, list):
        raise TypeError
    return items


def _laid_out(tensor: Tensor, order: list[int] | None) -> Tensor:
    """A tensor whose dimensions were stored in this order, largest stride first, as it lay in
    memory.
    """
    return tensor if order is None else tensor.permute([order.index(d) for d in range(len(order))])


def _all(folder: Path) -> list[Path]:
    try:
        return sorted(
            Path(e.path) for e in os.scandir(folder) if re.fullmatch("step-[0-9]{9}", e.name)
        )
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.is_symlink():
            return []
        raise CheckpointError(
            f"{folder} cannot be read as a folder of checkpoints ({error.strerror}); move it away."
        ) from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
