"""Simulation-based calibration (SBC) of an amortised guide on data that its own model simulates.

Draw z* from the prior, x from p(x | z*), and θ_1 … θ_S from the guide. If the guide is the
posterior, z* and the draws are exchangeable given x, so for any function f(z, x) the rank of f(z*,
x) among the f(θ_s, x) is uniform on {0, …, S}. With f the components of z this is SBC. A posterior
that is too narrow puts ranks at both ends, one that is too wide in the middle, one that is shifted
at one end. The components alone do not detect a guide that is the prior, or that is wrong only
jointly; f = log p(x | z) does, and is ranked with them.

An amortised guide is run, not trained, so a simulation costs S draws. The test concerns the guide
on the model's own data, under the prior, and not on other data. For a guide that is fitted to one
data set see ``vsbc``. A latent that a mask of the model hides has no posterior, so it is ranked
only in the simulations that do not hide it.

References: Validating Bayesian inference algorithms with simulation-based calibration, Talts,
Betancourt, Simpson, Vehtari and Gelman, 2018; Simulation-based calibration checking for Bayesian
computation: the choice of test quantities shapes sensitivity, Modrák et al., 2023.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_seed
from vilvm._runtime.results import Result, frame_of
from vilvm.diagnostics._amortised import check_amortised
from vilvm.diagnostics._calibration import (
    HIDDEN,
    check_options,
    missing_simulations,
    rows_of_a_pass,
    shown,
    uniformity_of_shown,
)
from vilvm.diagnostics._components import quantities
from vilvm.diagnostics._time_budget import TimeBudget
from vilvm.diagnostics._uniformity import Coverage, holm, interval_coverage, rank_among
from vilvm.diagnostics._verdicts.calibration import sbc_finding
from vilvm.diagnostics.finding import Finding
from vilvm.lvm import LatentVariableModel
from vilvm.weights.simulation import Rebuild, simulating, simulations

__all__ = ["SBC", "sbc"]


@dataclass(frozen=True, repr=False)
class SBC(Result):
    """The ranks of the truth among the guide's draws, and tests that they are uniform.

    Arguments:
        ranks: whole numbers from 0 to num_draws, shape (L, K); −1 where a mask of the model hides
            the latent.
        num_draws: S, the number of draws per simulation.
        names: names of the K quantities: each component of each latent that is not always hidden,
            such as "z[3]", and "log p(x | z)".
        p_values: p-values of the exact ECDF test of uniformity, shape (K,), not adjusted for their
            number.
        false_alarm: probability that the exact posterior is rejected.
        cut: what is missing for lack of time.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.sbc import SBC
        >>> found = SBC(torch.arange(100)[:, None] % 10, 9, ("z",), torch.ones(1), 0.01)
        >>> found.finding.severity.name, found.coverage.shares.shape
        ('OK', torch.Size([4, 1]))
    """

    ranks: Tensor
    num_draws: int
    names: tuple[str, ...]
    p_values: Tensor
    false_alarm: float
    cut: str = ""

    @property
    def adjusted(self) -> Tensor:
        """p-values adjusted for their number (Holm), shape (K,); compare with `false_alarm`."""
        return holm(self.p_values)

    @property
    def coverage(self) -> Coverage:
        """How often the central 50, 80, 90 and 95 % intervals contain the truth, by quantity."""
        each = [
            interval_coverage(shown(column), self.num_draws) for column in self.ranks.T
        ]
        return Coverage(
            each[0].levels,
            torch.cat([c.shares for c in each], 1),
            torch.cat([c.errors for c in each], 1),
        )

    @property
    def finding(self) -> Finding:
        """OK if no quantity departs from uniform ranks; else the severity of the worst."""
        return sbc_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a quantity.

        Columns: name; p_value, and adjusted for their number (Holm); the shares of simulations
        whose central intervals contain the truth, coverage_50, …, coverage_95.
        """
        columns = {
            "name": self.names,
            "p_value": self.p_values,
            "adjusted": self.adjusted,
        }
        return frame_of({**columns, **self.coverage.columns()})


@torch.no_grad()
def sbc(
    lvm: LatentVariableModel,
    num_simulations: int = 1000,
    num_draws: int = 99,
    *,
    like: Any = None,
    rebuild: Rebuild | None = None,
    false_alarm: float = 0.01,
    seed: int = 0,
    batch_size: int | None = None,
    budget: float | None = None,
) -> SBC:
    """Simulation-based calibration of an amortised guide.

    If every latent belongs to one datum, each datum is a simulation. If the data share a latent,
    each batch is one; of latents of single data, those of the first ten data are ranked.

    Arguments:
        lvm: the model and guide, run in evaluation mode. The guide must read its batch, unless it
            is the prior.
        num_simulations: L; coverage is estimated to 0.5 / √L or better.
        num_draws: S, the number of draws of the guide per simulation.
        like: a batch, for a model that reads more of it than its length, or whose data share a
            latent; each simulation has its size.
        rebuild: makes a batch from draws {site: value} of the model; by default, simulated data
            replace those in `like`.
        false_alarm: probability that the exact posterior is rejected, over all quantities.
        seed: seed of all draws.
        batch_size: data per pass; by default as many as make 8,000 draws (400,000 on a GPU).
        budget: seconds after which no more simulations are made; see `cut`.

    Returns:
        SBC, with ranks of shape (num_simulations, K).

    Raises:
        NotApplicable: the guide does not read its batch, or has parameters for each datum; the
            data share a latent and `like` is not given. It is a ContractError.
        ContractError: the guide has no spread, or the model cannot be simulated.
        ValueError: an option is out of range, or a batch cannot be made of draws.

    Reference: Validating Bayesian inference algorithms with simulation-based calibration, Talts et
    al., 2018.

    Examples:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.sbc import sbc
        >>> lvm = PPCA(data_dim=6, latent_dim=2).maximise(torch.randn(50, 6))
        >>> found = sbc(lvm, num_simulations=20, num_draws=9)
        >>> found.names, found.finding.severity.name
        (('z[0]', 'z[1]', 'log p(x | z)'), 'OK')
    """
    seed = check_seed("sbc: seed", seed)
    options = check_options("sbc", num_simulations, num_draws, false_alarm, rebuild)
    time = TimeBudget(budget)
    parts, names = [], ()
    with simulating(lvm, like, seed) as fixed:
        check_amortised("sbc", lvm, fixed, rebuild, seed)
        for simulation in simulations(
            lvm,
            options.num_simulations,
            like=fixed,
            rebuild=rebuild,
            batch_size=rows_of_a_pass(lvm, options.num_draws, batch_size),
        ):
            ranked = quantities(lvm, simulation, options.num_draws)
            ranks = rank_among(ranked.truth, ranked.draws)
            parts.append(ranks.masked_fill(~ranked.shown, HIDDEN).cpu())
            names = ranked.names
            if time.is_spent:
                break
    ranks = torch.cat(parts)[: options.num_simulations]
    is_kept = (ranks != HIDDEN).any(0)
    ranks = ranks[:, is_kept]
    return SBC(
        ranks,
        options.num_draws,
        tuple(n for n, kept in zip(names, is_kept.tolist(), strict=True) if kept),
        uniformity_of_shown(ranks, options.num_draws),
        options.false_alarm,
        missing_simulations(ranks, options.num_simulations),
    )
