"""Reference moments of a posterior, kept as a small file with the settings that produced them.

``python -m benchmarks.hierarchical_references`` in a checkout writes the files: by long runs of
NumPyro's NUTS, or in closed form.

Reference: Rank-Normalization, Folding, and Localization: An Improved R̂ for Assessing Convergence
of MCMC, Vehtari, Gelman, Simpson, Carpenter and Bürkner, 2021.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Scalar", "Summary", "read_summary"]


class Scalar(NamedTuple):
    """Reference statistics of one scalar; R̂ and effective sample sizes are None where exact.

    Arguments:
        mean: posterior mean.
        sd: posterior standard deviation.
        q5: quantile of 5 %.
        q95: quantile of 95 %.
        r_hat: rank-normalised split R̂.
        ess_bulk: effective sample size of the bulk.
        ess_tail: effective sample size of the tails.

    Examples:
        >>> from vilvm.models.hierarchical.summary import Scalar
        >>> Scalar(0.0, 1.0, -1.64, 1.64, None, None, None).sd
        1.0
    """

    mean: float
    sd: float
    q5: float
    q95: float
    r_hat: float | None
    ess_bulk: float | None
    ess_tail: float | None


class Summary(NamedTuple):
    """Reference moments of a posterior, as ``vilvm.data.datasets.ReferencePosterior`` has them.

    Arguments:
        name: of the posterior.
        method: how they were found: method, settings, versions, date.
        scalars: by name, such as "theta[1]".

    Examples:
        >>> from vilvm.models.hierarchical.summary import Scalar, Summary
        >>> exact = Scalar(0.0, 3.0, -4.93, 4.93, None, None, None)
        >>> Summary("funnel", {}, {"v": exact}).sd("v")
        3.0
    """

    name: str
    method: dict[str, Any]
    scalars: dict[str, Scalar]

    def mean(self, parameter: str) -> float:
        """The posterior mean of a scalar."""
        return self.scalars[parameter].mean

    def sd(self, parameter: str) -> float:
        """The posterior standard deviation of a scalar."""
        return self.scalars[parameter].sd


def read_summary(name: str) -> Summary:
    """Reads the reference moments of a posterior, from the file beside this one.

    Arguments:
        name: of the posterior, such as "radon".

    Returns:
        Summary.

    Examples:
        >>> from vilvm.models.hierarchical.summary import read_summary
        >>> read_summary("funnel").mean("v")
        0.0
    """
    path = Path(__file__).with_name(f"{name}.json")
    read = json.loads(path.read_text(encoding="utf-8"))
    scalars = {key: Scalar(*row) for key, row in read["scalars"].items()}
    return Summary(read["name"], read["method"], scalars)
