"""Frey faces: 1,965 frames of a video of one face, 28 × 20 grey levels.

Neighbouring frames are nearly equal, and the frames are split at random, as papers do. So most
test frames have near copies among the training data.

Reference: Nonlinear Dimensionality Reduction by Locally Linear Embedding, Roweis and Saul, 2000.
"""

import os
from pathlib import Path

import torch

from vilvm._runtime.argument_checks import (
    check_number,
    check_path,
    check_seed,
    optional,
)
from vilvm.data.data import Data, Transform
from vilvm.data.datasets._numpy_files import read_npy
from vilvm.data.datasets.dataset import Dataset, carve

__all__ = ["frey_faces"]

_FILE = Path("freyfaces") / "freyfaces_uint8_1965x28x20.npy"
_SHAPE, _TEST = (1965, 28, 20), 200


def frey_faces(
    root: str | Path | None = None,
    *,
    validation: int = 200,
    transform: Transform | None = None,
    seed: int = 0,
) -> Dataset:
    """Frey faces, grey levels in [0, 1], rows of 560; 200 frames are test data.

    Nothing is downloaded: the frames must be in the folder `root`, in the file
    ``freyfaces/freyfaces_uint8_1965x28x20.npy``. The test data are the same for every `seed`.

    Arguments:
        root: the folder; by default the environment variable VILVM_DATA, else the working folder.
        validation: number of the other 1,765 frames that are validation data, drawn from `seed`.
        transform: applied to each batch.
        seed: of the validation split.

    Returns:
        The three splits, without labels.

    Raises:
        FileNotFoundError: the file is not there; the message names its place.
        ValueError: the file is damaged or holds other data, or `validation` is out of range.

    Examples:
        >>> from vilvm.data.datasets import frey_faces
        >>> try:
        ...     frey_faces("/a/folder/without/the/file")
        ... except FileNotFoundError as error:
        ...     print(str(error)[:27])
        No Frey faces in /a/folder/
    """
    seed = check_seed("frey_faces: seed", seed)
    validation = check_number("frey_faces: validation", validation)
    root = optional(check_path, "frey_faces: root", root)
    folder = Path(root or os.environ.get("VILVM_DATA", "."))
    frames = _frames(folder)
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))

    def part(rows: torch.Tensor, split: str) -> Data:
        return Data(frames[rows], "Frey faces", split, image_shape=_SHAPE[1:])

    train, test = part(order[_TEST:], "train"), part(order[:_TEST], "test")
    return Dataset(*carve(train, validation, seed), test).with_transform(transform)


def _frames(folder: Path) -> torch.Tensor:
    path = folder / _FILE
    if not path.exists():
        raise FileNotFoundError(
            f"No Frey faces in {folder}: put the frames, uint8 of shape {_SHAPE}, into {path}, or "
            f"point VILVM_DATA at a folder that holds {_FILE}."
        )
    frames = read_npy(path)
    if frames.shape != _SHAPE or frames.dtype != "uint8":
        raise ValueError(
            f"{path}: holds {frames.dtype} of shape {frames.shape} instead of uint8 of shape "
            f"{_SHAPE}; replace it."
        )
    return torch.from_numpy(frames.copy()).flatten(1).float() / 255
