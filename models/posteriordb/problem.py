"""A posterior to infer: a model, its data, and the names of its scalars.

The scalars of a site θ with event shape (n_1, …, n_k) have the names of Stan, with indices from 1:
"theta" if k = 0, else "theta[i_1,…,i_k]".

Reference: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vilvm.data.datasets import ReferencePosterior, posteriordb

__all__ = ["Given", "Problem", "Statement", "Table"]


class Statement(NamedTuple):
    """What a table of posteriors makes of the variables of posteriordb.

    Arguments:
        model: a plain Pyro model, a function of the data.
        data: a tensor or a tuple of tensors, with one datum a row; float64.
        parameters: the sites, latent or deterministic, whose scalars have reference draws.

    Examples:
        >>> import torch
        >>> from vilvm.models.posteriordb import Statement
        >>> Statement(print, torch.zeros(3), ("mu",)).parameters
        ('mu',)
    """

    model: Callable[[Any], Any]
    data: Any
    parameters: tuple[str, ...]


Given = Mapping[str, Any]  # the variables of posteriordb
Table = dict[str, Callable[[Given], Statement]]  # how to state each posterior, by name


@dataclass(frozen=True)
class Problem:
    """A posterior to infer, with reference draws of it.

    Arguments:
        name: in posteriordb, DATA-MODEL.
        model: a plain Pyro model without a guide, a function of the data.
        data: what the model is called with, a tensor or a tuple of tensors, with one datum a row.
        parameters: the sites, latent or deterministic, whose scalars have reference draws.
        folder: of the files of the posterior; None for the default of
            ``vilvm.data.datasets.posteriordb``.

    Examples:
        >>> import torch
        >>> from vilvm.models.posteriordb import Problem
        >>> problem = Problem("coin-bias", print, torch.ones(3), parameters=("mu", "beta"))
        >>> draws = {"mu": torch.zeros(5), "beta": torch.zeros(5, 2)}
        >>> list(problem.scalars(draws))
        ['mu', 'beta[1]', 'beta[2]']
    """

    name: str
    model: Callable[[Any], Any]
    data: Any
    parameters: tuple[str, ...]
    folder: str | Path | None = None

    def scalars(
        self, values: Mapping[str, Tensor], sample_dims: int = 1
    ) -> dict[str, Tensor]:
        """The scalars of the reported sites, under the names of posteriordb.

        Arguments:
            values: of the latents and the deterministic sites, shape (*samples, *event); others
                are ignored.
            sample_dims: the number of dimensions of samples.

        Returns:
            By name, shape (*samples,).

        Raises:
            ValueError: a reported site is missing, or has fewer dimensions than `sample_dims`.
        """
        named: dict[str, Tensor] = {}
        for site in self.parameters:
            if site not in values:
                raise ValueError(
                    f"{self.name}: the values lack the site {site!r} (they have "
                    f"{sorted(values)}); deterministic sites are needed too."
                )
            named |= _scalars_of(site, values[site], sample_dims)
        return named

    def reference(self) -> ReferencePosterior:
        """The posterior's reference draws by scalar; raises as ``posteriordb`` does."""
        return posteriordb(self.name, self.folder)


def _scalars_of(site: str, value: Tensor, sample_dims: int) -> dict[str, Tensor]:
    if value.dim() < sample_dims:
        raise ValueError(
            f"Site {site!r} has shape {tuple(value.shape)}, fewer than the {sample_dims} "
            "dimensions of samples."
        )
    event = value.shape[sample_dims:]
    if not event:
        return {site: value}
    return {
        f"{site}[{','.join(str(i + 1) for i in index)}]": value[(..., *index)]
        for index in product(*map(range, event))
    }
