"""Tests of accuracy with random points (TARP): calibration of all latents jointly.

Draw z* from the prior, x from p(x | z*), and θ_1 … θ_S from the guide. If the guide is the
posterior, the rank of f(z*, x) among the f(θ_s, x) is uniform on {0, …, S} for any function f (see
``vilvm.diagnostics.sbc``). TARP takes f(z, x) = ‖z − r(x)‖, the distance to a reference point that
may depend on x but not on z*: one number for all latents jointly. A reference that does not depend
on x cannot distinguish the prior from the posterior; so here it is the latent of another
simulation, the one whose data are nearest to x. A latent that a mask of the model hides adds
nothing to the distance.

Reference: Sampling-based accuracy testing of posterior estimators for general inference, Lemos,
Coogan, Hezaveh and Perreault-Levasseur, 2023.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_seed
from vilvm._runtime.results import Result, frame_of
from vilvm.diagnostics._amortised import check_amortised
from vilvm.diagnostics._calibration import (
    check_options,
    missing_simulations,
    rows_of_a_pass,
)
from vilvm.diagnostics._components import components, features, truth, visible
from vilvm.diagnostics._time_budget import TimeBudget
from vilvm.diagnostics._uniformity import rank_among, uniformity_p_values
from vilvm.diagnostics._verdicts.calibration import tarp_finding
from vilvm.diagnostics.finding import Finding
from vilvm.lvm import LatentVariableModel
from vilvm.weights import Simulation
from vilvm.weights.guide_draws import latent_draws
from vilvm.weights.simulation import Rebuild, simulating, simulations

__all__ = ["TARP", "tarp"]

_LEFT = 0.7  # share of the budget that is left for the ranks


@dataclass(frozen=True, repr=False)
class TARP(Result):
    """Ranks of the truth's distance to a reference among those of the guide's draws.

    Arguments:
        ranks: whole numbers from 0 to num_draws, shape (L,).
        num_draws: S, the number of draws per simulation.
        p_value: p-value of the exact ECDF test of uniformity.
        false_alarm: probability that the exact posterior is rejected.
        cut: what is missing for lack of time.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.tarp import TARP
        >>> TARP(torch.arange(100) % 10, 9, 1.0, 0.01).finding.severity.name
        'OK'
    """

    ranks: Tensor
    num_draws: int
    p_value: float
    false_alarm: float
    cut: str = ""

    @property
    def expected_coverage(self) -> tuple[Tensor, Tensor]:
        """Credibility levels i / (S + 1), i = 0, …, S + 1, and how often regions of each level
        contain the truth: both of shape (S + 2,), and equal up to chance for the posterior.
        """
        counts = torch.bincount(self.ranks, minlength=self.num_draws + 1).cumsum(0)
        level = torch.arange(self.num_draws + 2, dtype=torch.float64) / (
            self.num_draws + 1
        )
        return level, torch.cat([torch.zeros(1), counts]).double() / len(self.ranks)

    @property
    def finding(self) -> Finding:
        """OK if coverage agrees with its levels; else the severity of the largest difference.

        NOTE up to a difference of 0.05; CRITICAL if coverage is too low by more than 0.15.
        """
        return tarp_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a credibility level: level, coverage (a share)."""
        level, coverage = self.expected_coverage
        return frame_of({"level": level, "coverage": coverage})


class _References(NamedTuple):
    """Simulations whose latents are the reference points: latents (L, K) and data (L, ...)."""

    points: Tensor
    data: Tensor

    @property
    def spread(self) -> Tensor:
        """Standard deviation of each component; 1 for a constant."""
        spread = self.points.std(0, correction=0)
        return torch.where(spread > 0, spread, 1.0)

    def next_to(self, simulation: Simulation, done: int) -> Tensor:
        """The reference points of a batch of simulations: the latents of the nearest data."""
        return self.points[torch.cdist(features(simulation), self.data).argmin(1)]

    def at_random(self, simulation: Simulation, done: int) -> Tensor:
        """The reference points of a batch of simulations, regardless of the data."""
        index = torch.arange(done, done + simulation.size, device=self.points.device)
        return self.points[index % len(self.points)]


@torch.no_grad()
def tarp(
    lvm: LatentVariableModel,
    num_simulations: int = 1000,
    num_draws: int = 99,
    *,
    reference: Literal["data", "prior"] = "data",
    like: Any = None,
    rebuild: Rebuild | None = None,
    false_alarm: float = 0.01,
    seed: int = 0,
    batch_size: int | None = None,
    budget: float | None = None,
) -> TARP:
    """Tests of accuracy with random points: all latents of an amortised guide jointly.

    Distance is Euclidean, with each component in units of its prior standard deviation. A
    component whose posterior is much narrower than the others' therefore has little influence.

    Arguments:
        lvm: the model and guide, as for ``sbc``.
        num_simulations: L; the same number is made again, without draws, for the references.
        num_draws: S, the number of draws of the guide per simulation.
        reference: "data", the latent of another simulation whose data are nearest to x; or
            "prior", of any other simulation, which cannot distinguish prior and posterior.
        like: a batch, as for ``sbc``.
        rebuild: makes a batch from draws {site: value} of the model, as for ``sbc``.
        false_alarm: probability that the exact posterior is rejected.
        seed: seed of all draws.
        batch_size: data per pass, as for ``sbc``.
        budget: seconds after which no more simulations are made; see `cut`.

    Returns:
        TARP, with ranks of shape (num_simulations,).

    Raises:
        NotApplicable: as for ``sbc``.
        ContractError: as for ``sbc``.
        ValueError: an option is out of range.

    Reference: Sampling-based accuracy testing of posterior estimators for general inference, Lemos
    et al., 2023.

    Examples:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.tarp import tarp
        >>> lvm = PPCA(data_dim=6, latent_dim=2).maximise(torch.randn(50, 6))
        >>> tarp(lvm, num_simulations=20, num_draws=9).finding.severity.name
        'OK'
    """
    seed = check_seed("tarp: seed", seed)
    options = check_options("tarp", num_simulations, num_draws, false_alarm, rebuild)
    if reference not in ("data", "prior"):
        raise ValueError(
            f"tarp: unknown reference={reference!r}; choose 'data' or 'prior'."
        )
    with simulating(lvm, like, seed) as fixed:
        check_amortised("tarp", lvm, fixed, rebuild, seed)
        rows = rows_of_a_pass(lvm, options.num_draws, batch_size)
        source = {"like": fixed, "rebuild": rebuild, "batch_size": rows}
        time = TimeBudget(budget)
        references = _references(lvm, options.num_simulations, source, time)
        points_for = {"data": references.next_to, "prior": references.at_random}[
            reference
        ]
        ranks, done = [], 0
        for simulation in simulations(lvm, options.num_simulations, **source):
            points = points_for(simulation, done)
            ranks.append(
                _ranks(lvm, simulation, options.num_draws, points, references.spread)
            )
            done += simulation.size
            if time.is_spent:
                break
    joined = torch.cat(ranks)[: options.num_simulations]
    return TARP(
        joined,
        options.num_draws,
        uniformity_p_values(joined, options.num_draws).item(),
        options.false_alarm,
        missing_simulations(joined, options.num_simulations),
    )


def _references(
    lvm: LatentVariableModel,
    num_simulations: int,
    source: dict[str, Any],
    time: TimeBudget,
) -> _References:
    found = []
    for simulation in simulations(lvm, num_simulations, **source):
        found.append((truth(simulation), features(simulation)))
        if time.is_limited and time.left <= _LEFT * time.seconds:
            break
    return _References(*(torch.cat(column) for column in zip(*found, strict=True)))


def _ranks(
    lvm: LatentVariableModel,
    simulation: Simulation,
    num_draws: int,
    points: Tensor,
    spread: Tensor,
) -> Tensor:
    """The ranks of the true latents' distances to the points, shape (size,)."""
    drawn = components(
        latent_draws(lvm, simulation.batch, num_draws), simulation.layout
    )
    shown = visible(lvm, simulation)
    unit = spread
    if shown is not None:
        unit = torch.where(shown, spread, torch.inf)
    distance = ((truth(simulation) - points) / unit).norm(dim=-1)
    distances = ((drawn - points) / unit).norm(dim=-1)
    return rank_among(distance, distances).cpu()
