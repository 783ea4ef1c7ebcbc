"""Checkpoints: tensors as safetensors, the rest as JSON, nothing pickled.

A checkpoint is a folder ``step-000000469`` that holds ``tensors.safetensors`` and ``state.json``.
The JSON holds SHA-256 checksums of both and the identity of the run, and a checksum over these and
the step, so that no part of one checkpoint fits another. The run folder holds the same identity,
in ``run.json``. A checkpoint is written under a temporary name and renamed when it is complete on
disk. The checkpoint before it is kept until then, so a process that is killed at any moment leaves
at least one good checkpoint.
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
    "MALFORMED",
    "CheckpointError",
    "identify",
    "latest",
    "load",
    "order_of",
    "pack",
    "save",
    "spoiled",
    "sweep",
    "unpack",
]

_FORMAT, _VERSION = "vilvm checkpoint", 4
_TENSORS, _STATE, _RUN = "tensors.safetensors", "state.json", "run.json"
_KEPT = 2
# The errors that parsing altered bytes may raise.
MALFORMED = (
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
    """A checkpoint or saved model that cannot be written or must not be read; the message says
    which file, why, and what to do.
    """


def save(folder: Path, step: int, state: Any) -> Path:
    """Writes the checkpoint of a step, and removes all older ones but the last.

    Arguments:
        folder: of the checkpoints of a run.
        step: the number of steps taken.
        state: a nest of dicts, lists, tensors and plain values.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: the state holds something that is neither a tensor nor plain data.
        OSError: it cannot be written.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from vilvm.training import checkpoint
        >>> with tempfile.TemporaryDirectory() as run:
        ...     folder = Path(run) / "checkpoint"
        ...     saved = checkpoint.save(folder, 10, {"mean": torch.ones(2), "steps": 10})
        ...     print(saved.name, checkpoint.load(saved)["mean"].tolist())
        step-000000010 [1.0, 1.0]
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
    write_atomic(
        partial / _STATE, json.dumps({**header, "state": body}, ensure_ascii=False)
    )
    _sync(partial)
    for old in [target] * target.exists() + [c for c in _all(folder) if c < target][
        : 1 - _KEPT
    ]:
        # Renamed first, so that no partial checkpoint has the name of a checkpoint.
        old.rename(old.with_name(f".{old.name}.removed"))
    partial.rename(target)
    _sync(folder)
    sweep(folder)
    return target


def sweep(folder: Path) -> None:
    """Removes partial checkpoints, which a killed process has left.

    Arguments:
        folder: of the checkpoints of a run.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from vilvm.training import checkpoint
        >>> with tempfile.TemporaryDirectory() as run:
        ...     folder = Path(run) / "checkpoint"
        ...     saved = checkpoint.save(folder, 10, {"mean": torch.ones(2), "steps": 10})
        ...     (folder / ".step-000000020.partial").mkdir()
        ...     checkpoint.sweep(folder)
        ...     print([path.name for path in folder.iterdir()])
        ['step-000000010']
    """
    for removed in folder.glob(".step-*"):
        shutil.rmtree(removed, ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None.

    Arguments:
        folder: of the checkpoints of a run.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: `folder` exists and cannot be read as a folder.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from vilvm.training import checkpoint
        >>> with tempfile.TemporaryDirectory() as run:
        ...     folder = Path(run) / "checkpoint"
        ...     saved = checkpoint.save(folder, 10, {"mean": torch.ones(2), "steps": 10})
        ...     print(checkpoint.latest(folder) == saved)
        True
    """
    found = _all(folder)
    return found[-1] if found else None


def load(checkpoint: Path, device: torch.device | str = "cpu") -> Any:
    """The state that ``save`` wrote.

    Arguments:
        checkpoint: the folder of one checkpoint.
        device: of the tensors.

    Returns:
        The state, with its tensors on `device`.

    Raises:
        CheckpointError: the checkpoint is truncated, altered, of another run, of another program,
            or of another version.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from vilvm.training import checkpoint
        >>> with tempfile.TemporaryDirectory() as run:
        ...     folder = Path(run) / "checkpoint"
        ...     saved = checkpoint.save(folder, 10, {"mean": torch.ones(2), "steps": 10})
        ...     print(checkpoint.load(saved)["steps"])
        10
    """
    text, blob = _contents(checkpoint)
    header, body = _parsed(checkpoint, text)
    try:
        _check_header(checkpoint, header, blob, body)
        tensors = {
            name: tensor.to(device) for name, tensor in load_tensors(blob).items()
        }
        state = unpack(body, tensors)
    except CheckpointError:
        raise
    except MALFORMED:
        raise spoiled(
            checkpoint, "it is altered: its parts do not fit together"
        ) from None
    if tensors:
        raise spoiled(
            checkpoint,
            f"it is altered: its state lacks the tensor {min(tensors)[:60]!r}",
        )
    return state


def _contents(checkpoint: Path) -> tuple[bytes, bytes]:
    """The bytes of state and tensors."""
    try:
        return read(checkpoint / _STATE), read(checkpoint / _TENSORS)
    except FileNotFoundError as error:
        raise spoiled(checkpoint, f"it lacks {Path(error.filename).name}") from None
    except OSError as error:
        raise spoiled(
            checkpoint, f"it cannot be read ({error.strerror}: {error.filename})"
        ) from None


def _parsed(checkpoint: Path, text: bytes) -> tuple[dict[str, Any], Any]:
    """Header and state of a checkpoint of this version."""
    try:
        header = json.loads(text.decode())
    except MALFORMED:
        raise spoiled(checkpoint, f"{_STATE} is truncated or altered") from None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise spoiled(checkpoint, "it is not a checkpoint of vilvm")
    body = header.pop("state", None)
    version = header.get("version")
    if version != _VERSION:
        raise CheckpointError(
            f"Checkpoint {checkpoint} has version {str(version)[:20]}, this vilvm reads version "
            f"{_VERSION}: use the vilvm that wrote it."
        )
    return header, body


def _check_header(
    checkpoint: Path,
    header: dict[str, Any],
    blob: bytes,
    body: Any,
) -> None:
    """Raises CheckpointError unless header, tensors and state belong together, to this step and
    to this run.
    """
    proper = _header(header["run"], header["step"], blob, body)
    if header["sha256"]["tensors"] != proper["sha256"]["tensors"]:
        raise spoiled(
            checkpoint, f"{_TENSORS} is truncated or altered (its checksum differs)"
        )
    if header["sha256"]["state"] != proper["sha256"]["state"]:
        raise spoiled(checkpoint, f"{_STATE} is altered (its checksum differs)")
    if header != proper:
        raise spoiled(
            checkpoint, f"the header of {_STATE} is altered (its checksum differs)"
        )
    if checkpoint.name != f"step-{header['step']:09d}":
        raise spoiled(checkpoint, f"it holds step {header['step']} under another name")
    if header["run"] != identify(checkpoint.parent):
        raise spoiled(checkpoint, f"it is of another run than {checkpoint.parents[1]}")


def _header(
    run: str,
    step: int,
    blob: bytes,
    body: Any,
) -> dict[str, Any]:
    sums = {
        "tensors": _sha256(blob),
        "state": _sha256(json.dumps(body, ensure_ascii=False).encode()),
    }
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "run": run,
        "step": step,
        "sha256": sums,
    }
    return {
        **header,
        "sha256": {**sums, "header": _sha256(json.dumps(header).encode())},
    }


def spoiled(checkpoint: Path, what: str) -> CheckpointError:
    """The error for a checkpoint that must not be read, with the advice to use the one before.

    Arguments:
        checkpoint: the folder of one checkpoint.
        what: the fault, as a clause.

    Examples:
        >>> from pathlib import Path
        >>> from vilvm.training.checkpoint import spoiled
        >>> print(spoiled(Path("run/checkpoint/step-000000010"), "it is altered"))
        Checkpoint run/checkpoint/step-000000010: it is altered. Start a new run.
    """
    advice = "Start a new run."
    before = [c for c in _all(checkpoint.parent) if c < checkpoint]
    if before:
        advice = f"Remove that folder to resume from {before[-1].name}."
    return CheckpointError(f"Checkpoint {checkpoint}: {what}. {advice}")


def identify(folder: Path) -> str | None:
    """The identity of the run of some checkpoints; None for a run without checkpoints.

    Arguments:
        folder: of the checkpoints of a run, in the run folder.

    Returns:
        32 hexadecimal digits.

    Raises:
        CheckpointError: there are checkpoints, but no identity.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from vilvm.training import checkpoint
        >>> with tempfile.TemporaryDirectory() as run:
        ...     folder = Path(run) / "checkpoint"
        ...     saved = checkpoint.save(folder, 10, {"mean": torch.ones(2), "steps": 10})
        ...     print(len(checkpoint.identify(folder)))
        32
    """
    file = folder.parent / _RUN
    try:
        found = json.loads(read(file))["run"]
        if re.fullmatch("[0-9a-f]{32}", found):
            return found
        fault = "is altered"
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    except MALFORMED:
        fault = "is altered"
    if latest(folder) is None:
        return None
    raise CheckpointError(
        f"{file} {fault}, which identifies the run of the checkpoints beside it: restore it, or "
        "start a new run."
    )


def _begin(folder: Path) -> str:
    """A new identity in the run folder."""
    run = secrets.token_hex(16)  # not from torch's generators, which belong to the run
    write_json(folder.parent / _RUN, {"run": run})
    return run


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """A value as JSON, with its tensors kept separately, named by their path.

    Arguments:
        value: a nest of dicts, lists, tuples, tensors and plain values.
        tensors: receives the tensors.
        path: of `value` in the whole.

    Returns:
        What JSON can hold, with references to the tensors.

    Raises:
        CheckpointError: it holds something that is neither a tensor nor plain data.

    Examples:
        >>> import torch
        >>> from vilvm.training.checkpoint import pack
        >>> pack({"mean": torch.ones(2), "shape": (1, 2)}, {})
        {'mean': {'!': 'tensor', 'name': '/mean'}, 'shape': {'!': 'tuple', 'items': [1, 2]}}
    """
    if isinstance(value, Tensor):
        return _pack_tensor(value, tensors, path)
    if isinstance(value, np.generic):
        return pack(value.item(), tensors, path)
    if isinstance(value, tuple):
        return {"!": "tuple", "items": pack(list(value), tensors, path)}
    if isinstance(value, list):
        return [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
    if isinstance(value, dict):
        return _pack_dict(value, tensors, path)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"A checkpoint cannot hold {path} = {value!r}: only tensors, numbers, strings, and lists "
        "and dicts of them."
    )


def _pack_tensor(
    value: Tensor,
    tensors: dict[str, Tensor],
    path: str,
) -> dict[str, Any]:
    """A reference to a tensor, which is stored contiguously."""
    name = path
    if path in tensors:  # keys 1 and "1" have one path
        name = f"{path}#{len(tensors)}"
    # A fused optimizer reads parameter and state in the order of memory, so this order is kept.
    order = order_of(value)
    value = value.detach()
    if order:
        value = value.permute(order)
    tensors[name] = value.cpu().contiguous().clone()
    reference: dict[str, Any] = {"!": "tensor", "name": name}
    if order:
        reference["order"] = order
    return reference


def order_of(tensor: Tensor) -> list[int]:
    """The dimensions by their strides, largest first; empty for a contiguous tensor.

    Arguments:
        tensor: of any shape.

    Examples:
        >>> import torch
        >>> from vilvm.training.checkpoint import order_of
        >>> order_of(torch.zeros(2, 3).t()), order_of(torch.zeros(2, 3))
        ([1, 0], [])
    """
    if tensor.is_contiguous():
        return []
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


def _pack_dict(
    value: dict[Any, Any],
    tensors: dict[str, Tensor],
    path: str,
) -> dict[str, Any]:
    """A dict, or a ``Counter``; as a list of items unless its keys are plain strings."""
    kind = "counter" if isinstance(value, Counter) else "dict"
    if kind == "dict" and all(isinstance(k, str) and k != "!" for k in value):
        return {k: pack(v, tensors, f"{path}/{k}") for k, v in value.items()}
    items = [
        [pack(k, tensors), pack(v, tensors, f"{path}/{k}")] for k, v in value.items()
    ]
    return {"!": kind, "items": items}


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of ``pack``.

    Arguments:
        value: the output of ``pack``.
        tensors: those that ``pack`` kept; each is removed as it is used.

    Returns:
        The value that was packed.

    Raises:
        LookupError, TypeError, ValueError: `value` is not the output of ``pack``.

    Examples:
        >>> from vilvm.training.checkpoint import pack, unpack
        >>> unpack(pack({"shape": (1, 2)}, {}), {})
        {'shape': (1, 2)}
    """
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "!" not in value:
        return {k: unpack(v, tensors) for k, v in value.items()}
    return _UNPACK[value["!"]](value, tensors)


def _unpack_tensor(value: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    """The tensor, with its dimensions in their former order in memory."""
    tensor = tensors.pop(value["name"])
    order = value.get("order")
    if order is None:
        return tensor
    return tensor.permute([order.index(d) for d in range(len(order))])


def _unpack_tuple(value: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Any, ...]:
    return tuple(unpack(_list(value["items"]), tensors))


def _unpack_dict(value: dict[str, Any], tensors: dict[str, Tensor]) -> dict[Any, Any]:
    return {unpack(k, tensors): unpack(v, tensors) for k, v in _list(value["items"])}


def _unpack_counter(value: dict[str, Any], tensors: dict[str, Tensor]) -> Counter[Any]:
    return Counter(_unpack_dict(value, tensors))


_UNPACK: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], Any]] = {
    "tensor": _unpack_tensor,
    "tuple": _unpack_tuple,
    "dict": _unpack_dict,
    "counter": _unpack_counter,
}


def _list(items: Any) -> list[Any]:
    if not isinstance(items, list):
        raise TypeError
    return items


def _all(folder: Path) -> list[Path]:
    try:
        return sorted(
            Path(e.path)
            for e in os.scandir(folder)
            if re.fullmatch("step-[0-9]{9}", e.name)
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
