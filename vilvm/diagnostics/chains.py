"""Whether chains agree, and how many independent draws they are worth: R̂ and effective sizes.

Each chain is split in two, and draws are replaced by the normal quantiles of their ranks. With W
the mean variance within the half-chains, each of n draws, and B / n the variance of their means,

    R̂ = √((n − 1) / n + B / (n W)),

the larger of that of the draws and of their distances from the median, so that chains of equal
means and unequal spread differ too. The bulk effective sample size is that of the ranks; the tail
effective sample size is the smaller of those of the 5 % and 95 % quantiles. All three are ArviZ's.

Draws are good enough to use with R̂ ≤ 1.01 and both effective sizes at least 400, which is 100 for
each of four chains. Chains that all miss a mode agree with one another.

Reference: Rank-Normalization, Folding, and Localization: An Improved R̂ for Assessing Convergence
of MCMC, Vehtari, Gelman, Simpson, Carpenter and Bürkner, 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilvm._runtime.results import Result, frame_of
from vilvm.diagnostics._verdicts.chains import chains_finding
from vilvm.diagnostics.finding import Finding

__all__ = ["Chains", "chains"]

R_HAT, ESS = 1.01, 400  # Vehtari et al., 2021
_LEAST = 4  # fewest draws of a chain


@dataclass(frozen=True, repr=False)
class Chains(Result):
    """R̂ and effective sample sizes of chains, by component.

    Arguments:
        names: names of the K components.
        r_hat: R̂, shape (K,).
        ess_bulk: bulk effective sample size, shape (K,).
        ess_tail: tail effective sample size, shape (K,).
        num_chains: number of chains.
        num_draws: draws of each chain.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics import chains
        >>> chains(torch.randn(4, 500, 3)).r_hat.shape
        torch.Size([3])
    """

    names: tuple[str, ...]
    r_hat: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor
    num_chains: int
    num_draws: int

    @property
    def apart(self) -> Tensor:
        """In which components chains disagree: R̂ > 1.01 or not a number, shape (K,)."""
        return ~(self.r_hat <= R_HAT)

    @property
    def few(self) -> Tensor:
        """Which components have an effective sample size below 400, shape (K,)."""
        return ~(torch.minimum(self.ess_bulk, self.ess_tail) >= ESS)

    @property
    def finding(self) -> Finding:
        """WARNING if chains disagree or effective draws are few; else OK."""
        return chains_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a component: name, r_hat, ess_bulk, ess_tail (draws)."""
        names = ("r_hat", "ess_bulk", "ess_tail")
        return frame_of({"name": self.names, **{n: getattr(self, n) for n in names}})


def chains(draws: Tensor, names: Sequence[str] | None = None) -> Chains:
    """R̂ and effective sample sizes of the chains of every component.

    Arguments:
        draws: shape (chains, draws, K), at least 4 draws of each chain.
        names: names of the K components; by default "z[0]", "z[1]" and so on.

    Returns:
        Chains.

    Raises:
        ValueError: the shape is another, or `names` are not K names.

    Reference: Rank-Normalization, Folding, and Localization: An Improved R̂ for Assessing
    Convergence of MCMC, Vehtari, Gelman, Simpson, Carpenter and Bürkner, 2021.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics import chains
        >>> draws = torch.randn(4, 500, 1, generator=torch.Generator().manual_seed(0))
        >>> chains(draws).finding.severity.name
        'OK'
        >>> draws[0] += 1  # one chain is elsewhere
        >>> chains(draws).finding.severity.name
        'WARNING'
    """
    if draws.dim() != 3 or draws.shape[1] < _LEAST or not len(draws):
        raise ValueError(
            "chains: draws must have shape (chains, draws, K), with at least "
            f"{_LEAST} draws; got {tuple(draws.shape)}."
        )
    if names is None:
        names = [f"z[{i}]" for i in range(draws.shape[2])]
    if len(names) != draws.shape[2]:
        raise ValueError(
            f"chains: names must name {draws.shape[2]} components; got {len(names)}."
        )
    z = draws.detach().double().cpu().numpy()
    r_hat, bulk, tail = (
        torch.from_numpy(np.array(values, dtype=np.float64).reshape(z.shape[2]))
        for values in _statistics(z)
    )
    return Chains(tuple(names), r_hat, bulk, tail, *draws.shape[:2])


def _statistics(z: np.ndarray) -> tuple[Any, Any, Any]:
    from arviz_stats.base import array_stats  # takes a second to import

    if not z.shape[2]:
        return np.empty(0), np.empty(0), np.empty(0)
    axes: dict[str, Any] = {"chain_axis": 0, "draw_axis": 1}
    with np.errstate(all="ignore"):
        return (
            array_stats.rhat(z, **axes, method="rank"),
            array_stats.ess(z, **axes, method="bulk"),
            array_stats.ess(z, **axes, method="tail", prob=(0.05, 0.95)),
        )
