"""A data set of a user's own tensors, arrays, or ``.npy`` and ``.npz`` files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import (
    check_number,
    check_path,
    check_seed,
    optional,
)
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
    """A data set of arrays with one datum a row.

    The arrays are tensors, numpy arrays, or paths of ``.npy`` or ``.npz`` files. Rows of more than
    one dimension (pictures) are flattened, and ``image_shape`` keeps their shape; uint8 is divided
    by 255.

    Arguments:
        train: training data, shape (num_data, ...).
        test: test data; by default a tenth of `train`, drawn from `seed`.
        validation: number of data to split off the other data; by default a tenth of them.
        transform: applied to each batch.
        name: of the data set; by default the file's, or "arrays".
        key: which array of a ``.npz`` file; needed if it holds several.
        seed: of the splits.

    Returns:
        The three splits.

    Raises:
        ValueError: a file is missing, empty, truncated, pickled or of another kind, or an array
            holds NaN or text, is empty, or does not fit the other split.

    Examples:
        >>> import torch
        >>> from vilvm.data.datasets import arrays
        >>> [len(split) for split in arrays(torch.rand(100, 3))]
        [81, 9, 10]
    """
    seed = check_seed("arrays: seed", seed)
    num_validation = optional(check_number, "arrays: validation", validation)
    label = name or _default_name(train)
    rest = _data(train, label, "train", key)
    _check_enough(rest, label, test is None)
    if test is None:
        rest, held_out = carve(rest, max(1, len(rest) // 10), seed + 1)
        held_out = replace(held_out, split="test")
    else:
        held_out = _data(test, label, "test", key)
        _check_rows_agree(rest, held_out, label)
    if num_validation is None:
        num_validation = max(1, len(rest) // 10)
    return Dataset(*carve(rest, num_validation, seed), held_out).with_transform(
        transform
    )


def _default_name(train: Any) -> str:
    if isinstance(train, str | Path):
        return Path(train).stem
    return "arrays"


def _check_enough(whole: Data, name: str, has_no_test: bool) -> None:
    if len(whole) < 2 + has_no_test:
        raise ValueError(
            f"{name}: {len(whole)} rows cannot be split; pass more, or use vilvm.Data(tensor), "
            "which does not split them."
        )


def _check_rows_agree(train: Data, test: Data, name: str) -> None:
    if train.x.shape[1:] != test.x.shape[1:]:
        raise ValueError(
            f"{name}: training data have rows of shape {tuple(train.x.shape[1:])}, test data "
            f"{tuple(test.x.shape[1:])}."
        )


def _data(source: Any, name: str, split: str, key: str | None) -> Data:
    if isinstance(source, str | Path):
        source = _read(check_path(f"arrays: {split}", source), key)
    tensor = source
    if not isinstance(source, Tensor):
        tensor = _tensor(source, name)
    if tensor.dim() == 0:
        raise ValueError(
            f"{name}: the {split} data are a single number; pass an array with one datum a row."
        )
    if tensor.dtype == torch.uint8:
        tensor = tensor.float() / 255
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    shape = None
    if tensor.dim() > 2:
        shape = tuple(tensor.shape[1:])
        tensor = tensor.flatten(1)
    return as_data(Data(tensor, name, split, image_shape=shape), f"{name} ({split})")


def _tensor(array: Any, name: str) -> Tensor:
    if np.ma.isMaskedArray(array):
        raise ValueError(
            f"{name}: is a NumPy masked array, whose mask a tensor cannot keep; pass "
            "array.filled(0), and the mask to vilvm.wrappers.partly_observed.partly_observed, "
            "poutine.mask or .mask(...) of the distribution."
        )
    try:
        copied = np.array(array)
        if copied.dtype.kind not in "fiub":
            raise TypeError
        return torch.from_numpy(copied.astype(copied.dtype.newbyteorder("=")))
    except (TypeError, ValueError):
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(
            f"{name}: an array of {kind} holds no real numbers, or has rows of different lengths; "
            "pass an array of real numbers."
        ) from None


def _read(path: Path, key: str | None) -> np.ndarray:
    if path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(
            f"{path}: unknown kind of file {path.suffix!r}; give .npy or .npz."
        )
    if path.suffix.lower() == ".npy":
        return read_npy(path)
    return next(
        iter(read_npz(path, lambda names: [_picked(path, names, key)]).values())
    )


def _picked(path: Path, names: list[str], key: str | None) -> str:
    if key is None and len(names) != 1:
        raise ValueError(f"{path}: holds the arrays {names}; select one with key=....")
    if key is not None and key not in names:
        raise ValueError(f"{path}: holds no array {key!r}; it has {names}.")
    return key or names[0]
