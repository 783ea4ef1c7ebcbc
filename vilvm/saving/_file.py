"""The file of a saved model: tensors and a description, checked as a whole.

The metadata of the safetensors file hold the description, as JSON, and a SHA-256 checksum of it
and of every tensor's name, type, shape and contents. The checksum reveals damage. Anyone can
recompute it, so the description is also compared with a schema, and nothing in it is run.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from vilvm._runtime.files import read, write_atomic
from vilvm.training.checkpoint import MALFORMED, CheckpointError

__all__ = ["read_model", "refused", "write_model"]

_FORMAT, _VERSION = "vilvm model", 1
_TEXT, _SUM = "vilvm", "sha256"  # of the metadata


def write_model(
    path: Path, description: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Writes a model atomically.

    Raises:
        NotWritten: the disk is full or read-only.
    """
    header = {"format": _FORMAT, "version": _VERSION, **description}
    text = json.dumps(header, ensure_ascii=False)
    metadata = {_TEXT: text, _SUM: _checksum(text, tensors)}
    write_atomic(path, save_tensors(tensors, metadata))


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of a saved model.

    Raises:
        CheckpointError: the file is missing, truncated, altered, of another program, or of
            another version.
    """
    try:
        blob = read(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); give a file of vilvm.save, or a run "
            "folder."
        ) from None
    metadata, tensors = _parsed(path, blob)
    text, found = metadata.get(_TEXT), metadata.get(_SUM)
    if not isinstance(text, str):
        raise refused(path, "is not a model of vilvm, but another safetensors file")
    try:
        header = json.loads(text)
        intact = found == _checksum(text, tensors)
    except MALFORMED:
        raise refused(path, "is altered: its description is not JSON") from None
    _check_version(path, header)
    header.setdefault("columns", None)  # of files before vilvm 0.2
    if not intact:
        raise refused(path, "is altered: its checksum differs")
    _check_schema(path, header)
    return header, tensors


def refused(path: Path, what: str) -> CheckpointError:
    """The error for a file that must not be loaded.

    Arguments:
        path: of the file.
        what: the fault, as a predicate.
    """
    return CheckpointError(f"{path} {what}; save the model again.")


def _parsed(path: Path, blob: bytes) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """The metadata and the tensors of a safetensors file."""
    try:
        tensors = load_tensors(blob)
        # 8 bytes of length, then a header of this length; safetensors has checked both
        end = 8 + int.from_bytes(blob[:8], "little")
        metadata = json.loads(blob[8:end]).get("__metadata__") or {}
    except MALFORMED:
        raise refused(path, "is truncated, or no file of vilvm.save") from None
    return metadata, tensors


def _check_version(path: Path, header: Any) -> None:
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise refused(path, "is altered: its description is not that of a model")
    version = header.get("version")
    if type(version) is not int or version != _VERSION:
        by = header.get("versions")
        writer = by.get("vilvm") if isinstance(by, dict) else None
        raise CheckpointError(
            f"{path} has version {version!r:.20} of the format, and this vilvm reads version "
            f"{_VERSION}: use the vilvm that wrote it ({writer!s:.20})."
        )


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, str) for n in value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_optional_dict(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _is_columns(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() != {"columns", "levels"}:
        return False
    names, levels = value["columns"], value["levels"]
    if isinstance(names, dict):
        proper = all(map(_is_names, names.values()))
    else:
        proper = names is None or _is_names(names)
    return proper and isinstance(levels, dict) and all(map(_is_names, levels.values()))


# what each entry of the description must be
_SCHEMA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "class": (_is_text, "a string"),
    "recipe": (_is_optional_dict, "an object or null"),
    "obstacle": (_is_text, "a string"),
    "state": (_is_names, "a list of names"),
    "extra": (_is_optional_dict, "an object or null"),
    "frozen": (_is_names, "a list of names"),
    "versions": (_is_texts, "an object of strings"),
    "columns": (_is_columns, "names and levels of columns, or null"),
    "data": (_is_optional_dict, "an object or null"),
    "saved": (_is_text, "a string"),
}


def _check_schema(path: Path, header: dict[str, Any]) -> None:
    for name in sorted(header.keys() ^ {*_SCHEMA, "format", "version"}):
        what = "an unknown" if name in header else "no"
        raise refused(
            path, f"is altered: its description has {what} entry {name!r:.60}"
        )
    for name, (proper, kind) in _SCHEMA.items():
        if not proper(header[name]):
            raise refused(
                path, f"is altered: {name!r} of its description is not {kind}"
            )


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name}{tuple(tensor.shape)}{tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
