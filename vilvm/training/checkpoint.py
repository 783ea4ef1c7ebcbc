"""Checkpoints: tensors as safetensors, the rest as JSON, nothing pickled.

A checkpoint is a folder ``step-000000469`` that holds ``tensors.safetensors`` and ``state.json``; the JSON carries SHA-256
checksums of both. It is written under another name and renamed when it is whole and on the disk, and the one before it is
kept until then, so a process that is killed at any moment leaves at least one good checkpoint behind.
"""

import hashlib
import json
import os
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

from vilvm.files import write_atomic

__all__ = ["CheckpointError", "latest", "load", "pack", "save", "unpack"]

_FORMAT, _VERSION = "vilvm checkpoint", 2
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_KEPT = 2


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or must not be read; the message says which file, why, and what to do."""


def save(folder: Path, step: int, state: Any) -> Path:
    """Writes `state`, a nest of dicts, lists, tensors and plain values, as the checkpoint of `step`; returns its folder.

    Older checkpoints beyond the last good one are removed.
    """
    tensors: dict[str, Tensor] = {}
    body = pack(state, tensors)
    blob = save_tensors(tensors)
    text = json.dumps(body, ensure_ascii=False)
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "step": step,
        "sha256": {"tensors": _sha256(blob), "state": _sha256(text.encode())},
        "state": body,
    }
    target = folder / f"step-{step:09d}"
    partial = folder / f".step-{step:09d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_atomic(partial / _TENSORS, blob)
    write_atomic(partial / _STATE, json.dumps(header, ensure_ascii=False))
    _sync(partial)
    for old in [target] * target.exists() + [c for c in _all(folder) if c < target][: 1 - _KEPT]:
        old.rename(old.with_name(f".{old.name}.removed"))  # in one stroke, so that no half checkpoint bears a checkpoint's name
    partial.rename(target)
    _sync(folder)
    for removed in folder.glob(".step-*"):
        shutil.rmtree(removed, ignore_errors=True)
    return target


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, or None."""
    found = _all(folder)
    return found[-1] if found else None


def load(checkpoint: Path, device: torch.device | str = "cpu") -> Any:
    """The state that ``save`` wrote, tensors on `device`.

    Raises:
        CheckpointError: the checkpoint is truncated, altered, of another program, or of a newer version.
    """
    advice = _advice(checkpoint)
    try:
        header = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        blob = (checkpoint / _TENSORS).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"Checkpoint {checkpoint} lacks {Path(error.filename).name}. {advice}") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise CheckpointError(f"Checkpoint {checkpoint}: {_STATE} is truncated or altered. {advice}") from None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise CheckpointError(f"{checkpoint} is not a checkpoint of vilvm. {advice}")
    if header.get("version") != _VERSION:
        raise CheckpointError(
            f"Checkpoint {checkpoint} has version {header.get('version')}, this vilvm reads version {_VERSION}: use the vilvm that wrote it."
        )
    try:
        sums, body = header["sha256"], header["state"]
        if sums["tensors"] != _sha256(blob):
            raise CheckpointError(f"Checkpoint {checkpoint}: {_TENSORS} is truncated or altered (its checksum differs). {advice}")
        if sums["state"] != _sha256(json.dumps(body, ensure_ascii=False).encode()):
            raise CheckpointError(f"Checkpoint {checkpoint}: {_STATE} is altered (its checksum differs). {advice}")
        tensors = {name: tensor.to(device) for name, tensor in load_tensors(blob).items()}
        return unpack(body, tensors)
    except (KeyError, TypeError, SafetensorError):
        raise CheckpointError(f"Checkpoint {checkpoint} is altered: its parts do not fit together. {advice}") from None


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """`value` as JSON, its tensors moved to `tensors` and named by their path.

    Raises:
        CheckpointError: it holds something that is neither a tensor nor plain data.
    """
    if isinstance(value, Tensor):
        name = path if path not in tensors else f"{path}#{len(tensors)}"  # keys 1 and "1" have one path
        # A fused optimizer walks through parameter and state side by side in memory: both must be laid out as they were.
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        order = [] if value.is_contiguous() else order
        tensors[name] = (value.detach().permute(order) if order else value.detach()).cpu().contiguous().clone()
        return {"!": "tensor", "name": name, **({"order": order} if order else {})}
    if isinstance(value, np.generic):
        return pack(value.item(), tensors, path)
    if isinstance(value, tuple):
        return {"!": "tuple", "items": [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
    if isinstance(value, dict):
        kind = "counter" if isinstance(value, Counter) else "dict"
        if kind == "dict" and all(isinstance(k, str) and k != "!" for k in value):
            return {k: pack(v, tensors, f"{path}/{k}") for k, v in value.items()}
        return {"!": kind, "items": [[pack(k, tensors), pack(v, tensors, f"{path}/{k}")] for k, v in value.items()]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"A checkpoint cannot hold {path} = {value!r}: only tensors, numbers, strings, and lists and dicts of them."
    )


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of ``pack``."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    kinds: dict[str, Callable[[], Any]] = {
        "tensor": lambda: _laid_out(tensors[value["name"]], value.get("order")),
        "tuple": lambda: tuple(unpack(v, tensors) for v in value["items"]),
        "dict": lambda: {unpack(k, tensors): unpack(v, tensors) for k, v in value["items"]},
        "counter": lambda: Counter({unpack(k, tensors): unpack(v, tensors) for k, v in value["items"]}),
    }
    return kinds[value["!"]]() if "!" in value else {k: unpack(v, tensors) for k, v in value.items()}


def _laid_out(tensor: Tensor, order: list[int] | None) -> Tensor:
    """A tensor whose dimensions were stored in this order, largest stride first, as it lay in memory."""
    return tensor.permute([order.index(d) for d in range(len(order))]) if order else tensor


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-" + "[0-9]" * 9)) if folder.is_dir() else []


def _advice(checkpoint: Path) -> str:
    before = [c for c in _all(checkpoint.parent) if c < checkpoint]
    return f"Remove that folder to resume from {before[-1].name}." if before else "Start a new run."


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
