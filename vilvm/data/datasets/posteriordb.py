"""Posteriors of posteriordb: their data, and reference draws of long Stan runs.

Reference: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_path, optional
from vilvm.data.datasets._numpy_files import read_npz

__all__ = ["ReferencePosterior", "posteriordb"]


class ReferencePosterior(NamedTuple):
    """A posterior with its data and reference draws.

    Arguments:
        name: of the posterior, DATA-MODEL.
        data: by name in posteriordb; an array is a float32 tensor, a number stays a number.
        draws: by scalar parameter, such as "beta[1]"; float64, shape (num_chains, num_draws).

    Examples:
        >>> import torch
        >>> from vilvm.data.datasets import ReferencePosterior
        >>> ReferencePosterior("a-b", {}, {"mu": torch.tensor([[1.0, 3.0]])}).mean("mu")
        2.0
    """

    name: str
    data: dict[str, Tensor | int | float]
    draws: dict[str, Tensor]

    def mean(self, parameter: str) -> float:
        """The posterior mean of a parameter, from the reference draws."""
        return self.draws[parameter].mean().item()

    def sd(self, parameter: str) -> float:
        """The posterior standard deviation of a parameter, from the reference draws."""
        return self.draws[parameter].std().item()


def posteriordb(name: str, folder: str | Path | None = None) -> ReferencePosterior:
    """Reads a posterior by its name, such as "kidiq-kidscore_momiq".

    The files are ``NAME.data.json`` and ``NAME.draws.npz``. Nothing is downloaded.

    Arguments:
        name: of the posterior.
        folder: of the two files; by default ``posteriordb`` in the folder of the environment
            variable VILVM_DATA, else in the user's cache.

    Returns:
        The data and the reference draws.

    Raises:
        FileNotFoundError: a file is missing; the message lists the posteriors in the folder.
        ValueError: a file is truncated or altered.

    Examples:
        >>> from vilvm.data.datasets import posteriordb
        >>> try:
        ...     posteriordb("eight_schools", "/a/folder/without/the/files")
        ... except FileNotFoundError as error:
        ...     print(str(error)[:28])
        No posterior 'eight_schools'
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(
            "posteriordb: name must be that of a posterior, such as 'kidiq-kidscore_momiq'; got "
            f"{name!r}."
        )
    found = optional(check_path, "posteriordb: folder", folder) or _default_folder()
    files = [found / f"{name}.data.json", found / f"{name}.draws.npz"]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"No posterior {name!r} in {found} ({missing[0].name} is not there): {_known(found)}."
        )
    return ReferencePosterior(name, _read_data(files[0]), _read_draws(files[1]))


def _default_folder() -> Path:
    root = os.environ.get("VILVM_DATA") or platformdirs.user_cache_path("vilvm")
    return Path(root, "posteriordb")


def _known(folder: Path) -> str:
    known = sorted(
        p.name.removesuffix(".data.json") for p in folder.glob("*.data.json")
    )
    if known:
        return f"there are {known}"
    return "there is none; point VILVM_DATA at a folder that holds posteriordb/"


def _read_data(path: Path) -> dict[str, Tensor | int | float]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        return {key: _value(key, value) for key, value in _entries(read)}
    except RecursionError:
        raise ValueError(_damaged(path, "it is nested too deeply")) from None
    except ValueError as error:
        raise ValueError(_damaged(path, error)) from None


def _read_draws(path: Path) -> dict[str, Tensor]:
    try:
        draws = {key: _draws(key, array) for key, array in read_npz(path).items()}
    except ValueError as error:
        raise ValueError(_damaged(path, str(error).removeprefix(f"{path}: "))) from None
    if not draws:
        raise ValueError(_damaged(path, "it holds no draws"))
    return draws


def _entries(read: object) -> Any:
    if not isinstance(read, dict):
        raise ValueError("it holds no names with values")
    return read.items()


def _value(key: str, value: object) -> Tensor | int | float:
    """A number unchanged, or a nested list of numbers as a float32 tensor; else ValueError."""
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 2**63
    ):
        return value
    if isinstance(value, list):
        with suppress(ValueError, TypeError, OverflowError, RuntimeError):
            array = torch.tensor(value, dtype=torch.float32)
            if bool(array.isfinite().all()):
                return array
    raise ValueError(f"{key!r} is not a finite number, or an array of them")


def _no_number(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _draws(key: str, array: np.ndarray) -> Tensor:
    usable = array.dtype.kind in "fiu" and array.ndim == 2 and array.size > 0
    if not usable or not np.isfinite(array).all():
        raise ValueError(
            f"{key!r} is not finite draws of shape (num_chains, num_draws)"
        )
    return torch.from_numpy(array.astype(np.float64))


def _damaged(path: Path, error: object) -> str:
    return (
        f"{path} is truncated or altered ({error}): remove it, and download it again."
    )
