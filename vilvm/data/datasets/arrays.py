"""A user's own tensors and ``.npy`` and ``.npz`` files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_path, check_seed, optional
from vilvm.data.data import Data, Transform, as_data
from vilvm.data.datasets._numpy_files import read_npy, read_npz
from vilvm.data.datasets.dataset import Dataset, carve

__all__ = ["arrays"]


def arrays(
    train: Tensor | np.ndarray | str | Path,
    test: Tensor | np.ndarray | str | Path | None = None,
    *,
    validation: int | None = None,
    transform: Transform | None = None,
    name: str | None = None,
    key: str | None = None,
    seed: int = 0,
) -> Dataset:
    """A data set of arrays with one datum a row: tensors, numpy arrays, or paths of ``.npy`` or
    ``.npz`` files.

    Rows of more than one dimension (pictures) are flattened, their shape kept as ``image_shape``;
    uint8 is divided by 255.

    Arguments:
        train: training data.
        test: test data; by default a tenth of `train`, drawn from `seed`.
        validation: how many data to carve from the rest; by default a tenth of it.
        transform: applied to each batch.
        name: of the data set; by default the file's, or "arrays".
        key: which array of a ``.npz`` file; needed if it holds several.
        seed: of the splits.

    Raises:
        ValueError: a file is missing, empty, truncated, pickled or of another kind, or an array
            holds NaN or text, is empty, or does not fit the other split.
    """
    seed = check_seed("arrays: seed", seed)
    validation = optional(check_number, "arrays: validation", validation)
    label = name or (Path(train).stem if isinstance(train, str | Path) else "arrays")
    whole = _data(train, label, "train", key)
    if len(whole) < (3 if test is None else 2):
        raise ValueError(
            f"{label}: {len(whole)} rows cannot be split; pass more, or use vilvm.Data(tensor) as "
            "it is."
        )
    if test is None:
        rest, held_out = carve(whole, max(1, len(whole) // 10), seed + 1)
        tested = replace(held_out, split="test")
    else:
        rest, tested = whole, _data(test, label, "test", key)
        if tested.x.shape[1:] != rest.x.shape[1:]:
            raise ValueError(
                f"{label}: training data have rows of shape {tuple(rest.x.shape[1:])}, test data "
                f"{tuple(tested.x.shape[1:])}."
            )
    kept, validated = carve(
        rest, validation if validation is not None else max(1, len(rest) // 10), seed
    )
    return Dataset(kept, validated, tested).with_transform(transform)


def _data(source: Any, name: str, split: str, key: str | None) -> Data:
    array = (
        _read(check_path(f"arrays: {split}", source), key)
        if isinstance(source, str | Path)
        else source
    )
    tensor = array if isinstance(array, Tensor) else _tensor(array, name)
    if tensor.dim() == 0:
        raise ValueError(
            f"{name}: the {split} data are a single number; pass an array with one datum a row."
        )
    if tensor.dtype == torch.uint8:
        tensor = tensor.float() / 255
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    shape = tuple(tensor.shape[1:]) if tensor.dim() > 2 else None
    data = Data(tensor.flatten(1) if shape else tensor, name, split, image_shape=shape)
    return as_data(data, f"{name} ({split})")


def _tensor(array: Any, name: str) -> Tensor:
    if np.ma.isMaskedArray(array):
        raise ValueError(
            f"{name}: is a NumPy masked array, whose mask no tensor keeps; pass array.filled(0), "
            "and the mask to vilvm.wrappers.partly_observed.partly_observed, "
            "poutine.mask or .mask(...) of the distribution."
        )
    try:
        found = np.array(array)
        if found.dtype.kind not in "fiub":
            raise TypeError
        return torch.from_numpy(found.astype(found.dtype.newbyteorder("=")))
    except (TypeError, ValueError):
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(
            f"{name}: an array of {kind} holds no numbers to model, or complex ones, or rows of "
            "several lengths."
        ) from None


def _read(path: Path, key: str | None) -> np.ndarray:
    if path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; give .npy or .npz.")
    if path.suffix.lower() == ".npy":
        return read_npy(path)
    return next(iter(read_npz(path, lambda names: [_picked(path, names, key)]).values()))


def _picked(path: Path, names: list[str], key: str | None) -> str:
    if key is None and len(names) != 1:
        raise ValueError(f"{path}: holds the arrays {names}; say which with key=....")
    if key is not None and key not in names:
        raise ValueError(f"{path}: holds no array {key!r}; it has {names}.")
    return key or names[0]
