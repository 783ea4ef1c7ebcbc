"""Posteriors with reference answers: data, and draws of long Stan runs, of posteriordb.

Reference: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024.
"""

import json
import os
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
        name: of the posterior, which is DATA-MODEL.
        data: by the names of posteriordb; an array is a float32 tensor, a number is left as it is.
        draws: one scalar parameter each, such as "beta[1]", float64, shape (num_chains,
            num_draws).
    """

    name: str
    data: dict[str, Tensor | int | float]
    draws: dict[str, Tensor]

    def mean(self, parameter: str) -> float:
        """The posterior mean of a parameter, by the reference draws."""
        return self.draws[parameter].mean().item()

    def sd(self, parameter: str) -> float:
        """The posterior standard deviation of a parameter, by the reference draws."""
        return self.draws[parameter].std().item()


def posteriordb(name: str, folder: str | Path | None = None) -> ReferencePosterior:
    """A posterior by its name, such as "kidiq-kidscore_momiq".

    Read from ``NAME.data.json`` and ``NAME.draws.npz`` in `folder`, else in the folder
    ``posteriordb`` of the one that the environment variable VILVM_DATA names, else of the user's
    cache. Nothing is downloaded.

    Arguments:
        name: of the posterior.
        folder: where the two files are.

    Raises:
        FileNotFoundError: a file is not there; lists the posteriors that are.
        ValueError: a file is truncated or altered.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(
            "posteriordb: name must be that of a posterior, such as 'kidiq-kidscore_momiq'; got "
            f"{name!r}."
        )
    folder = optional(check_path, "posteriordb: folder", folder)
    place = Path(
        folder
        or Path(os.environ.get("VILVM_DATA") or platformdirs.user_cache_path("vilvm"))
        / "posteriordb"
    )
    missing = [path for path in _files(place, name) if not path.is_file()]
    if missing:
        known = sorted(p.name.removesuffix(".data.json") for p in place.glob("*.data.json"))
        there = (
            f"there are {known}"
            if known
            else "there is none; point VILVM_DATA at a folder that holds posteriordb/"
        )
        raise FileNotFoundError(
            f"No posterior {name!r} in {place} ({missing[0].name} is not there): {there}."
        )
    data_file, draws_file = _files(place, name)
    try:
        read = json.loads(data_file.read_text(encoding="utf-8"), parse_constant=_no_number)
        data = {key: _value(key, value) for key, value in _entries(read)}
    except RecursionError:
        raise ValueError(_damaged(data_file, "it is nested too deeply")) from None
    except ValueError as error:
        raise ValueError(_damaged(data_file, error)) from None
    try:
        draws = {key: _draws(key, array) for key, array in read_npz(draws_file).items()}
    except ValueError as error:
        raise ValueError(
            _damaged(draws_file, str(error).removeprefix(f"{draws_file}: "))
        ) from None
    if not draws:
        raise ValueError(_damaged(draws_file, "it holds no draws"))
    return ReferencePosterior(name, data, draws)


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.data.json", folder / f"{name}.draws.npz"


def _entries(read: object) -> Any:
    if not isinstance(read, dict):
        raise ValueError("it holds no names with values")
    return read.items()


def _value(key: str, value: object) -> Tensor | int | float:
    """A number as it is, and a nested list of numbers as a float32 tensor; raises ValueError of
    anything else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63:
        return value
    try:
        found = (
            torch.tensor(value, dtype=torch.float32)
            if isinstance(value, list)
            else torch.tensor(torch.nan)
        )
    except (ValueError, TypeError, OverflowError, RuntimeError):
        found = torch.tensor(torch.nan)
    if not bool(found.isfinite().all()):
        raise ValueError(f"{key!r} is not a finite number, or an array of them")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _draws(key: str, array: np.ndarray) -> Tensor:
    if (
        array.dtype.kind not in "fiu"
        or array.ndim != 2
        or not array.size
        or not np.isfinite(array).all()
    ):
        raise ValueError(f"{key!r} is not finite draws of shape (num_chains, num_draws)")
    return torch.from_numpy(array.astype(np.float64))


def _damaged(path: Path, error: object) -> str:
    return f"{path} is truncated or altered ({error}): remove it, and get it again."
