"""Posteriors with reference answers: data, and draws of long Stan runs, of posteriordb.

Reference: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms, Magnusson et al., 2024.
"""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
import torch
from torch import Tensor

__all__ = ["ReferencePosterior", "posteriordb"]


class ReferencePosterior(NamedTuple):
    """A posterior with its data and reference draws.

    Arguments:
        name: of the posterior, which is DATA-MODEL.
        data: by the names of posteriordb; an array is a float32 tensor, a number is left as it is.
        draws: one scalar parameter each, such as "beta[1]", float64, shape (num_chains, num_draws).
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

    Read from ``NAME.data.json`` and ``NAME.draws.npz`` in `folder`, else in the folder ``posteriordb`` of the one that the environment
    variable VILVM_DATA names, else of the user's cache. Nothing is downloaded.

    Arguments:
        name: of the posterior.
        folder: where the two files are.

    Raises:
        FileNotFoundError: a file is not there; lists the posteriors that are.
        ValueError: a file is truncated or altered.
    """
    place = Path(folder or Path(os.environ.get("VILVM_DATA") or platformdirs.user_cache_path("vilvm")) / "posteriordb")
    missing = [path for path in _files(place, name) if not path.is_file()]
    if missing:
        known = sorted(p.name.removesuffix(".data.json") for p in place.glob("*.data.json"))
        there = f"there are {known}" if known else "there is none; point VILVM_DATA at a folder that holds posteriordb/"
        raise FileNotFoundError(f"No posterior {name!r} in {place} ({missing[0].name} is not there): {there}.")
    data_file, draws_file = _files(place, name)
    try:
        data = {key: _value(value) for key, value in json.loads(data_file.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(_damaged(data_file, error)) from None
    try:
        with np.load(io.BytesIO(draws_file.read_bytes()), allow_pickle=False) as stored:
            draws = {key: torch.from_numpy(stored[key].astype(np.float64)) for key in stored.files}
    except (ValueError, EOFError, OSError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(_damaged(draws_file, error)) from None
    if not draws or {d.dim() for d in draws.values()} != {2} or not all(bool(torch.isfinite(d).all()) for d in draws.values()):
        raise ValueError(_damaged(draws_file, "an array is not finite draws of shape (num_chains, num_draws)"))
    return ReferencePosterior(name, data, draws)


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.data.json", folder / f"{name}.draws.npz"


def _value(value: object) -> Tensor | int | float:
    return torch.tensor(value, dtype=torch.float32) if isinstance(value, list) else _number(value)


def _number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _damaged(path: Path, error: object) -> str:
    return f"{path} is truncated or altered ({error}): remove it, and get it again."
