"""A posterior to infer: a model, its data, and the names of its scalars.

The scalars of a site θ with event shape (n_1, …, n_k) have the names of Stan, with indices from 1:
"theta" if k = 0, else "theta[i_1,…,i_k]".

Reference: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vilvm.data.tensors import map_tensors

__all__ = ["Problem", "Reference", "Statement"]


class Statement(NamedTuple):
    """What a table of posteriors has of each.

    Arguments:
        model: a plain Pyro model, a function of the data.
        data: a tensor or a tuple of tensors, with one datum a row; numbers that are not indices
            have float64.
        parameters: the sites, latent or deterministic, whose scalars have a reference.

    Examples:
        >>> import torch
        >>> from vilvm.data.problem import Statement
        >>> Statement(print, torch.zeros(3), ("mu",)).parameters
        ('mu',)
    """

    model: Callable[[Any], Any]
    data: Any
    parameters: tuple[str, ...]

    def data_of_default_dtype(self) -> Any:
        """The data, of torch's default dtype where they are floating-point."""
        dtype = torch.get_default_dtype()
        return map_tensors(
            lambda t: t.to(dtype) if t.is_floating_point() else t, self.data
        )


class Reference(Protocol):
    """Reference moments of the scalars of a posterior."""

    def mean(self, parameter: str) -> float:
        """The posterior mean of a scalar."""
        ...

    def sd(self, parameter: str) -> float:
        """The posterior standard deviation of a scalar."""
        ...


@dataclass(frozen=True)
class Problem:
    """A posterior to infer, with a reference for it.

    Arguments:
        name: of the posterior.
        model: a plain Pyro model without a guide, a function of the data.
        data: what the model is called with, a tensor or a tuple of tensors, with one datum a row.
        parameters: the sites, latent or deterministic, whose scalars have a reference.
        read_reference: reads the reference; None if there is none.

    Examples:
        >>> import torch
        >>> from vilvm.data.problem import Problem
        >>> problem = Problem("coin-bias", print, torch.ones(3), parameters=("mu", "beta"))
        >>> draws = {"mu": torch.zeros(5), "beta": torch.zeros(5, 2)}
        >>> list(problem.scalars(draws))
        ['mu', 'beta[1]', 'beta[2]']
    """

    name: str
    model: Callable[[Any], Any]
    data: Any
    parameters: tuple[str, ...]
    read_reference: Callable[[], Any] | None = None

    def scalars(
        self, values: Mapping[str, Tensor], sample_dims: int = 1
    ) -> dict[str, Tensor]:
        """The scalars of the reported sites, by name.

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

    def reference(self) -> Any:
        """What is known of the posterior by other means: a ``Reference``, in posteriordb with its
        draws. Raises as its reader does, and ValueError if there is none.
        """
        if self.read_reference is None:
            raise ValueError(f"{self.name}: there is no reference for this posterior.")
        return self.read_reference()


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
