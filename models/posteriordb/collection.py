"""All posteriors, by name.

Reference: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024.
"""

from functools import partial
from pathlib import Path

import torch

from vilvm.data.datasets import posteriordb
from vilvm.data.tensors import map_tensors

from . import gaussian_process, markov, mixture, regressions, schools, time_series
from .problem import Problem

__all__ = ["names", "posterior"]

_FAMILIES = (
    gaussian_process.POSTERIORS,
    markov.POSTERIORS,
    mixture.POSTERIORS,
    regressions.POSTERIORS,
    schools.POSTERIORS,
    time_series.POSTERIORS,
)
_POSTERIORS = {name: state for family in _FAMILIES for name, state in family.items()}


def names() -> list[str]:
    """The names of all posteriors, sorted.

    Returns:
        Names for ``posterior``.

    Examples:
        >>> from vilvm.models.posteriordb import names
        >>> len(names()), names()[0]
        (21, 'arK-arK')
    """
    return sorted(_POSTERIORS)


def posterior(name: str, folder: str | Path | None = None) -> Problem:
    """A posterior of posteriordb by its name, with its model and data.

    The data are read from the files that ``vilvm.data.datasets.posteriordb`` reads; nothing is
    downloaded. They have torch's default dtype: set it to float64 for inference in float64.

    Arguments:
        name: one of ``names()``.
        folder: of the files; by default as for ``vilvm.data.datasets.posteriordb``.

    Returns:
        Problem.

    Raises:
        ValueError: there is no model of this name; or a file is truncated or altered.
        FileNotFoundError: a file is missing.

    Reference: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
    Magnusson et al., 2024.

    Examples:
        >>> from vilvm.models.posteriordb import posterior
        >>> try:
        ...     posterior("mesquite-mesquite", "/a/folder/without/the/files")
        ... except FileNotFoundError as error:
        ...     print(str(error)[:32])
        No posterior 'mesquite-mesquite'
    """
    if name not in names():
        raise ValueError(f"posterior: no model of {name!r}; choose from {names()}.")
    given = map_tensors(torch.Tensor.double, posteriordb(name, folder).data)
    statement = _POSTERIORS[name](given)
    return Problem(
        name,
        statement.model,
        statement.data_of_default_dtype(),
        statement.parameters,
        partial(posteriordb, name, folder),
    )
