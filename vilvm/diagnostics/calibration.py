"""Calibration of an amortised guide on data that its own model makes: simulation-based calibration
(SBC) and TARP.

Draw z* from the prior, x from p(x | z*), and θ_1 … θ_S from the guide. If the guide is the
posterior, z* and the draws are exchangeable given x, so for any function f(z, x) the rank of f(z*,
x) among the f(θ_s, x) is uniform on {0, …, S}. With f the components of z this is SBC: a posterior
too narrow heaps ranks at both ends, one too wide in the middle, one beside the truth at one end.
The components alone are blind to a guide that is the prior, or that errs only jointly; f = log p(x
| z) is not, and is ranked with them.

TARP takes f(z, x) = ‖z − r(x)‖, the distance to a reference point that may depend on x but not on
z*: one number for all latents together. If the reference does not depend on x, it cannot tell the
prior from the posterior; so here it is the latent of a simulation of its own whose data are the
nearest to x.

An amortised guide is run, not trained, so a simulation costs S draws. What is tested is the guide
on the model's own data, under the prior: not on data unlike them. For a guide that is fitted to
one data set there is ``vsbc``. A latent, or part of one, that a mask of the model hides has no
posterior: it is ranked in those simulations only in which it is not hidden, and is at no distance
from the reference.

References: Validating Bayesian inference algorithms with simulation-based calibration, Talts,
Betancourt, Simpson, Vehtari and Gelman, 2018; Simulation-based calibration checking for Bayesian
computation: the choice of test quantities shapes sensitivity, Modrák et al., 2023; Sampling-based
accuracy testing of posterior estimators for general inference, Lemos, Coogan, Hezaveh and
Perreault-Levasseur, 2023.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability, check_seed
from vilvm.diagnostics._clock import Clock
from vilvm.diagnostics._components import (
    LIKELIHOOD,
    check_amortised,
    components,
    features,
    quantities,
    truth,
    visible,
)
from vilvm.diagnostics._uniformity import (
    Coverage,
    holm,
    interval_coverage,
    rank_among,
    uniformity_p_values,
)
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.evaluation.evaluate import rows_in_a_pass
from vilvm.lvm import LatentVariableModel, device_of
from vilvm.weights import posterior
from vilvm.weights.simulation import Rebuild, simulating, simulations

__all__ = ["SBC", "TARP", "sbc", "tarp"]

_SMALL, _LARGE = 0.05, 0.15
_HIDDEN = -1  # in place of the rank of a latent that a mask hides


@dataclass(frozen=True)
class SBC:
    """Simulation-based calibration: the ranks of the truth among the guide's draws.

    Arguments:
        ranks: whole numbers from 0 to num_draws, shape (L, K); −1 where a mask of the model hides
            the latent.
        num_draws: S, draws of a simulation.
        names: of the K quantities: each component of each latent that is not always hidden, such
            as "z[3]", and "log p(x | z)".
        p_values: of the exact ECDF test of uniformity, shape (K,), not adjusted for their number.
        false_alarm: the probability that the posterior itself is found fault with.
        cut: what was cut short for want of time.
    """

    ranks: Tensor
    num_draws: int
    names: tuple[str, ...]
    p_values: Tensor
    false_alarm: float
    cut: str = ""

    @property
    def adjusted(self) -> Tensor:
        """p-values adjusted for their number (Holm), shape (K,); below `false_alarm` is a
        departure.
        """
        return holm(self.p_values)

    @property
    def coverage(self) -> Coverage:
        """How often the central 50, 80, 90 and 95 % intervals hold the truth, by quantity."""
        each = [interval_coverage(shown(column), self.num_draws) for column in self.ranks.T]
        return Coverage(
            each[0].levels,
            *(torch.cat([getattr(c, part) for c in each], 1) for part in ("shares", "errors")),
        )

    @property
    def finding(self) -> Finding:
        """OK if no quantity departs; else by the worst of those that do, see ``departure``."""
        return judge(
            "Simulation-based calibration",
            self.ranks,
            self.num_draws,
            self.names,
            self.adjusted,
            self.false_alarm,
        )


@dataclass(frozen=True)
class TARP:
    """Tests of accuracy with random points: ranks of the truth's distance to a reference among
    those of the guide's draws.

    Arguments:
        ranks: whole numbers from 0 to num_draws, shape (L,).
        num_draws: S, draws of a simulation.
        p_value: of the exact ECDF test of uniformity.
        false_alarm: the probability that the posterior itself is found fault with.
        cut: what was cut short for want of time.
    """

    ranks: Tensor
    num_draws: int
    p_value: float
    false_alarm: float
    cut: str = ""

    @property
    def expected_coverage(self) -> tuple[Tensor, Tensor]:
        """Credibility levels i / (S + 1), i = 0, …, S + 1, and how often regions of that level
        hold the truth: both (S + 2,).

        The second is the first, but for chance, if the guide is the posterior.
        """
        counts = torch.bincount(self.ranks, minlength=self.num_draws + 1).cumsum(0)
        level = torch.arange(self.num_draws + 2, dtype=torch.float64) / (self.num_draws + 1)
        return level, torch.cat([torch.zeros(1), counts]).double() / len(self.ranks)

    @property
    def finding(self) -> Finding:
        """OK if coverage does not depart from its levels; else by the largest difference: NOTE to
        0.05, CRITICAL if too low by more than 0.15.
        """
        level, found = self.expected_coverage
        worst = int((found - level).abs().argmax())
        error, short = abs(float((found - level)[worst])), float((level - found).max())
        p = f"p {_p(self.p_value)}, {len(self.ranks)} simulations"
        source = (
            "Lemos et al. 2023; exact ECDF test (Säilynoja et al. 2022) at false-alarm rate "
            f"{self.false_alarm:g}; {_CONVENTION}"
        )
        if self.p_value >= self.false_alarm:
            return Finding(
                "TARP",
                Severity.OK,
                f"All latents together are covered as often as they should be ({p}).",
                source,
            )
        verdict = (
            f"Regions that should hold all latents together {level[worst]:.0%} of the time hold "
            f"them {found[worst]:.0%} of the time ({p})."
        )
        severity = (
            Severity.NOTE
            if error <= _SMALL
            else Severity.WARNING
            if short <= _LARGE
            else Severity.CRITICAL
        )
        return Finding(
            "TARP",
            severity,
            verdict,
            source,
            "Look at sbc(lvm) for which latents, and in what way.",
        )


_CONVENTION = f"severity by error of coverage, {_SMALL} and {_LARGE}, a convention of vilvm"
_ADVICE = {
    "narrow": "Try a richer guide (full covariance, a flow), or draw by weight (vilvm.resample).",
    "wide": "Train longer, or give the encoder more room.",
    "shifted": "Train longer, give the encoder more room, or refine the guide for each datum.",
    "joint": "The latents are wrong jointly: try a guide with dependence (full covariance, a flow), "
    "and look for collapse.",
}


class Departure(NamedTuple):
    """In which way, and how far, ranks depart from uniformity.

    Arguments:
        kind: "narrow", "wide" or "shifted"; "joint" for the log-likelihood.
        error: the largest error of coverage of central intervals, or of the mean rank, as a share
            of all.
        severity: NOTE to an error of 0.05, WARNING to 0.15, CRITICAL beyond; no more than WARNING
            if too wide, or for the log-likelihood.
        words: what that says of the posterior.
    """

    kind: str
    error: float
    severity: Severity
    words: str


def departure(name: str, ranks: Tensor, num_draws: int) -> Departure:
    """Describes ranks, of shape (L,), that a test has found not to be uniform."""
    ranks = shown(ranks)
    u = (ranks.double() + 0.5) / (num_draws + 1) - 0.5
    shift, spread = u.mean().item(), u.var(correction=0).item() - 1 / 12
    coverage = interval_coverage(ranks, num_draws)
    error = max((coverage.shares[:, 0] - coverage.levels).abs().max().item(), abs(shift))
    held, se = coverage.shares[2, 0].item(), coverage.errors[2, 0].item()
    holds = f"its 90 % intervals hold the truth {held:.0%} ± {se:.1%} of the time"
    # In standard errors: a uniform u has variance 1/12, and (u − ½)² has variance 1/180.
    shifted = abs(shift) * 12**0.5 >= abs(spread) * 180**0.5
    kind = (
        "joint"
        if name == LIKELIHOOD
        else "shifted"
        if shifted
        else "narrow"
        if spread > 0
        else "wide"
    )
    if kind == "joint":
        side = "worse than" if shift > 0 else "better than" if shifted else "not as well as"
        words = (
            f"the posterior's draws explain the data {side} the truth does: the truth's is the "
            f"higher {0.5 + shift:.0%} of the time"
        )
    elif kind == "shifted":
        words = (
            f"the posterior lies too {'low' if shift > 0 else 'high'}: the truth is above a draw "
            f"{0.5 + shift:.0%} of the time, and {holds}"
        )
    else:
        words = f"the posterior is too {kind}: {holds}"
    severity = (
        Severity.NOTE
        if error <= _SMALL
        else Severity.WARNING
        if error <= _LARGE or kind in ("wide", "joint")
        else Severity.CRITICAL
    )
    return Departure(kind, error, severity, words)


def shown(ranks: Tensor) -> Tensor:
    """Those of ranks of shape (L,) that are ranks."""
    return ranks[ranks != _HIDDEN]


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 1e-12 else "< 1e-12"


def judge(
    what: str,
    ranks: Tensor,
    num_draws: int,
    names: tuple[str, ...],
    adjusted: Tensor,
    false_alarm: float,
    tests: int = 1,
) -> Finding:
    """The finding on ranks of shape (L, K), by those quantities whose adjusted p-value is below
    `false_alarm`; `tests` of each.
    """
    which = (
        "exact ECDF test (Säilynoja et al. 2022)"
        if tests == 1
        else "exact tests of symmetry (Yao et al. 2018) and uniformity"
    )
    source = (
        f"{which} at false-alarm rate {false_alarm:g} over {tests * len(names)} tests (Holm); "
        f"{_CONVENTION}"
    )
    least = f"smallest adjusted p {_p(adjusted.min().item())}, {len(ranks)} simulations"
    failing = (adjusted < false_alarm).nonzero()[:, 0].tolist()
    if not failing:
        return Finding(
            what,
            Severity.OK,
            f"The truth ranks among the guide's draws as it should ({least}).",
            source,
        )
    found = {i: departure(names[i], ranks[:, i], num_draws) for i in failing}
    worst = max(
        failing, key=lambda i: (found[i].severity, names[i] != LIKELIHOOD, found[i].error)
    )  # a latent, if there is one as bad
    verdict = (
        f"{names[worst]}: {found[worst].words}. {len(failing)} of {len(names)} quantities depart "
        f"({least})."
    )
    small = found[worst].severity == Severity.NOTE
    advice = (
        "With enough simulations any fitted guide departs; this little seldom matters."
        if small
        else _ADVICE[found[worst].kind]
    )
    return Finding(what, found[worst].severity, verdict, source, advice)


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
    """Simulation-based calibration of an amortised guide: is z* a draw like the others?

    If every latent stands in the data plate each datum is a simulation. If a latent is shared by
    the data, each batch is one, and of latents beside it those of the first ten data are ranked.

    Arguments:
        lvm: the model and guide, in evaluation mode meanwhile. A guide that does not look at its
            batch is refused, unless it is the prior.
        num_simulations: L. Coverage is known to 0.5 / √L or better.
        num_draws: S, draws of the guide for each simulation.
        like: a batch, for a model that reads more of it than its length, or whose latents the data
            share; each simulation is of its size.
        rebuild: makes a batch of draws {site: value} of the model; by default, drawn data take the
            place of those in `like`.
        false_alarm: the probability that the posterior itself is found fault with, over all
            quantities together.
        seed: of all draws.
        batch_size: data a pass; by default as many as make 8,000 draws (400,000 on a GPU).
        budget: seconds after which no more simulations are made; see `cut`.

    Returns:
        SBC, with ranks of shape (num_simulations, K).

    Raises:
        NotApplicable: a ContractError: the guide does not look at its batch, or has parameters for
            each datum; latents are shared and `like` was not given.
        ContractError: the guide has no spread, or the model cannot be simulated.
        ValueError: an option is out of range, or a batch cannot be made of draws.

    Reference: Validating Bayesian inference algorithms with simulation-based calibration, Talts et
    al., 2018.

    Example:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.calibration import sbc
        >>> lvm = PPCA(data_dim=6, latent_dim=2).maximise(torch.randn(50, 6))
        >>> found = sbc(lvm, num_simulations=20, num_draws=9)
        >>> found.names, found.finding.severity.name
        (('z[0]', 'z[1]', 'log p(x | z)'), 'OK')
    """
    seed = check_seed("sbc: seed", seed)
    num_simulations, num_draws, false_alarm = check_options(
        "sbc", num_simulations, num_draws, false_alarm, rebuild
    )
    clock = Clock(budget)
    with simulating(lvm, like, seed) as fixed:
        check_amortised("sbc", lvm, fixed, rebuild, seed)
        parts, names = [], ()
        rows = _rows(lvm, num_draws, batch_size)
        for simulation in simulations(
            lvm, num_simulations, like=fixed, rebuild=rebuild, batch_size=rows
        ):
            first, draws, seen, names = quantities(lvm, simulation, num_draws)
            parts.append(rank_among(first, draws).masked_fill(~seen, _HIDDEN).cpu())
            if clock.over:
                break
    ranks = torch.cat(parts)[:num_simulations]
    kept = (ranks != _HIDDEN).any(0)
    ranks, names = ranks[:, kept], tuple(n for n, k in zip(names, kept.tolist(), strict=True) if k)
    return SBC(
        ranks,
        num_draws,
        names,
        _p_values(ranks, num_draws),
        false_alarm,
        _cut(ranks, num_simulations),
    )


def _p_values(ranks: Tensor, num_draws: int) -> Tensor:
    """Those of the test of uniformity, column by column where some ranks are hidden."""
    if bool((ranks != _HIDDEN).all()):
        return uniformity_p_values(ranks, num_draws)
    return torch.stack([uniformity_p_values(shown(column), num_draws) for column in ranks.T])


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
    """Tests of accuracy with random points: is z* as far from a reference as the guide's draws
    are?

    Distance is Euclidean, all latents together, each component in units of its prior standard
    deviation; so a component whose posterior is much narrower than the others' counts for little.

    Arguments:
        lvm, num_simulations, num_draws, like, rebuild, false_alarm, seed, batch_size, budget: as
            ``sbc``; there are as many simulations again, without draws, for the references.
        reference: "data", the latent of another simulation whose data are the nearest to x; or
            "prior", of any other simulation, which cannot tell a guide that is the prior from the
            posterior.

    Returns:
        TARP, with ranks of shape (num_simulations,).

    Raises:
        NotApplicable, ContractError: as ``sbc``.
        ValueError: an option is out of range.

    Reference: Sampling-based accuracy testing of posterior estimators for general inference, Lemos
    et al., 2023.

    Example:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.calibration import tarp
        >>> lvm = PPCA(data_dim=6, latent_dim=2).maximise(torch.randn(50, 6))
        >>> tarp(lvm, num_simulations=20, num_draws=9).finding.severity.name
        'OK'
    """
    seed = check_seed("tarp: seed", seed)
    num_simulations, num_draws, false_alarm = check_options(
        "tarp", num_simulations, num_draws, false_alarm, rebuild
    )
    if reference not in ("data", "prior"):
        raise ValueError(f"tarp: unknown reference={reference!r}; choose 'data' or 'prior'.")
    with simulating(lvm, like, seed) as fixed:
        check_amortised("tarp", lvm, fixed, rebuild, seed)
        rows = _rows(lvm, num_draws, batch_size)
        options = {"like": fixed, "rebuild": rebuild, "batch_size": rows}
        clock, others = Clock(budget), []
        for simulation in simulations(lvm, num_simulations, **options):
            others.append((truth(simulation), features(simulation)))
            if clock.affords(clock.seconds) < 0.7:
                break
        points, data = (torch.cat(column) for column in zip(*others, strict=True))
        spread = points.std(0, correction=0)
        spread = torch.where(spread > 0, spread, 1.0)
        ranks, done = [], 0
        for simulation in simulations(lvm, num_simulations, **options):
            index = torch.arange(done, done + simulation.size, device=points.device) % len(points)
            if reference == "data":
                index = torch.cdist(features(simulation), data).argmin(1)
            drawn = components(posterior(lvm, simulation.batch, num_draws), simulation.layout)
            seen = visible(lvm, simulation)
            unit = spread if seen is None else torch.where(seen, spread, torch.inf)
            first, draws = (
                ((z - points[index]) / unit).norm(dim=-1) for z in (truth(simulation), drawn)
            )
            ranks.append(rank_among(first, draws).cpu())
            done += simulation.size
            if clock.over:
                break
    joined = torch.cat(ranks)[:num_simulations]
    p_value = uniformity_p_values(joined, num_draws).item()
    return TARP(joined, num_draws, p_value, false_alarm, _cut(joined, num_simulations))


def _cut(ranks: Tensor, wanted: int) -> str:
    return f"{len(ranks)} of {wanted} simulations" if len(ranks) < wanted else ""


def _rows(lvm: LatentVariableModel, num_draws: int, batch_size: int | None) -> int:
    """Data a pass."""
    if batch_size is not None:
        return check_number("batch_size", batch_size)
    return max(1, rows_in_a_pass(device_of(lvm)) // num_draws)


def check_options(
    what: str, num_simulations: Any, num_draws: Any, false_alarm: Any, rebuild: Any
) -> tuple[int, int, float]:
    """The options of a calibration: simulations, draws and the false-alarm rate; raises ValueError
    unless they are in range.
    """
    if rebuild is not None and not callable(rebuild):
        raise ValueError(
            f"{what}: rebuild must be a function of the observed values; got a "
            f"{type(rebuild).__name__}."
        )
    return (
        check_number(f"{what}: num_simulations", num_simulations),
        check_number(f"{what}: num_draws", num_draws),
        check_probability(f"{what}: false_alarm", false_alarm),
    )
