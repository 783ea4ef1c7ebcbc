"""The evidence from both sides: annealed importance sampling (AIS), and bidirectional Monte Carlo
(BDMC).

AIS moves draws from a base density p₀ to the posterior over T steps, by Markov chains at β₀ = 0 <
β₁ < … < β_T = 1 that leave f_β ∝ p₀^{1−β} p(x, ·)^β invariant, and weighs each with

    w = Π_t f_{β_t}(u_{t−1}) / f_{β_{t−1}}(u_{t−1}),    E[w] = p(x).

So E[log (1/K) Σ w] is a lower bound on log p(x), which T and K tighten whatever the guide is
worth. Run backwards from a draw of the exact posterior, the same chain has E[w'] = 1 / p(x), so
that −log (1/K) Σ w' is an upper bound in the mean. Exact posterior draws are to be had for data
that the model itself makes: (z, x) ~ p(z, x). On such data both bounds stand, and their gap says
how far either is from the truth with these settings; on other data it is a guide to what they are
worth, as far as the model's own data are like them.

The step size of every datum and temperature is found in a pilot run of other chains, so that none
depends on the chain that it moves, and E[w] = p(x) holds exactly.

References: Annealed Importance Sampling, Radford M. Neal, 2001; Sandwiching the Marginal
Likelihood Using Bidirectional Monte Carlo, Grosse, Ghahramani and Adams, 2015; On the Quantitative
Analysis of Decoder-Based Generative Models, Wu, Burda, Salakhutdinov and Grosse, 2017 (sigmoid
schedule).
"""

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from vilvm._compile import Compile, check_compile, worth_compiling
from vilvm._runtime.argument_checks import check_number, check_probability, check_seed, optional
from vilvm._runtime.progress import ProgressBar
from vilvm._runtime.random import preserved_rng
from vilvm.data.data import Data
from vilvm.evaluation.density_gradients import DensityGradients
from vilvm.evaluation.estimates import Estimate
from vilvm.evaluation.hmc import State, transition
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    check_contract,
    device_of,
    evaluation_mode,
)
from vilvm.weights import Prepared, Simulation, find_layout
from vilvm.weights.log_joint import LogJoint
from vilvm.weights.prepared import Part, prepared_of
from vilvm.weights.simulation import simulating, simulations

__all__ = ["AISResult", "BDMCResult", "Schedule", "ais", "bdmc", "check_schedule"]

_ROWS_CPU, _ROWS_CUDA = 8_000, 200_000  # chains in a pass
_PILOT_START, _PILOT_LEAST = 30, 150  # transitions of the pilot: at β = 0, and at least in all
_PILOT_DRAWS, _GAIN = 64, 0.15  # by which positions are scaled; of the log step size
_WORTH_COMPILING = 5000  # gradients, from which a compiler's seconds are earned back
_SLOPE = 4.0  # of the sigmoid schedule, as Wu et al. have it
_FEW = 5.0  # effective chains, below which their spread says little of the error of their mean


@dataclass(frozen=True)
class Schedule:
    """How chains go from the base to the posterior.

    Arguments:
        num_chains: K, for each datum.
        num_temperatures: T, the number of steps from β = 0 to β = 1.
        leapfrog: steps of a trajectory of Hamiltonian Monte Carlo; one trajectory a temperature.
        path: "sigmoid", which is slow at both ends, or "linear".
        base: "guide" or "prior", where chains start.
        acceptance: that the step size is adapted to.

    Raises:
        ValueError: an option is out of range.
    """

    num_chains: int = 16
    num_temperatures: int = 200
    leapfrog: int = 5
    path: Literal["sigmoid", "linear"] = "sigmoid"
    base: Literal["guide", "prior"] = "guide"
    acceptance: float = 0.65

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures", "leapfrog"):
            object.__setattr__(self, name, check_number(f"Schedule: {name}", getattr(self, name)))
        for name, known in (("path", ("sigmoid", "linear")), ("base", ("guide", "prior"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Schedule: unknown {name}={getattr(self, name)!r}; choose from {list(known)}."
                )
        object.__setattr__(
            self, "acceptance", check_probability("Schedule: acceptance", self.acceptance)
        )

    def betas(self) -> list[float]:
        """β₀ = 0, …, β_T = 1."""
        t = torch.linspace(0, 1, self.num_temperatures + 1, dtype=torch.float64)
        if self.path == "sigmoid":
            t = torch.sigmoid(_SLOPE * (2 * t - 1))
            t = (t - t[0]) / (t[-1] - t[0])
        return t.tolist()


@dataclass(frozen=True)
class AISResult:
    """What ``ais`` found.

    Arguments:
        bound: a lower bound on log p(x) in the mean, in nats per datum; of all data together if
            they share a latent. Its Monte Carlo errors are of the delta method, and say something
            where ``reliable``.
        ess: effective sample size of the chains' weights, between 1 and num_chains, shape
            (num_data,).
        acceptance: mean share of accepted trajectories, by temperature, shape (T − 1,).
        schedule: the settings.
        protocol: data set, split, number of data, transform, seed.
        seconds: taken.
    """

    bound: Estimate
    ess: Tensor
    acceptance: Tensor
    schedule: Schedule
    protocol: dict[str, Any]
    seconds: float

    @property
    def reliable(self) -> Tensor:
        """Whether at least five chains count, shape (num_data,).

        Where fewer do, the bound may lie far below log p(x), and its error is not to be believed.
        """
        return self.ess >= _FEW

    def to_dict(self) -> dict[str, Any]:
        """Means and standard errors as plain numbers, for JSON."""
        return {
            "mean": self.bound.mean,
            "se": self.bound.se,
            "mc_se": self.bound.mc_se,
            "ess": self.ess.mean().item(),
            "reliable": self.reliable.double().mean().item(),
            "acceptance": self.acceptance.mean().item() if len(self.acceptance) else None,
            "schedule": asdict(self.schedule),
            "protocol": self.protocol,
        }


@dataclass(frozen=True)
class BDMCResult:
    """What ``bdmc`` found, on data that the model itself has made.

    Arguments:
        lower: by AIS forwards, in nats per datum (per data set, if its data share a latent).
        upper: by AIS backwards from the latents that made the data. All chains of a datum start
            there, so their Monte Carlo error is told too small by as much as they remember of it;
            the standard error over the data (``gap.se``) is not.
        ess: effective sample size of the chains' weights, the smaller of the two ways, shape
            (num_simulations,).
        schedule: the settings.
        seconds: taken.
    """

    lower: Estimate
    upper: Estimate
    ess: Tensor
    schedule: Schedule
    seconds: float

    @property
    def reliable(self) -> Tensor:
        """Whether at least five chains count both ways, shape (num_simulations,).

        Where fewer do, the Monte Carlo errors are not to be believed.
        """
        return self.ess >= _FEW

    @property
    def gap(self) -> Estimate:
        """upper − lower, at least zero in the mean; as far as either bound can be from log p(x)."""
        return self.upper - self.lower


def check_schedule(who: str, schedule: Any) -> Schedule:
    """The schedule that was given, or the default one; raises ValueError if it is none."""
    if not isinstance(schedule, Schedule | None):
        raise ValueError(
            f"{who}: schedule must be a vilvm.evaluation.Schedule; got a "
            f"{type(schedule).__name__}."
        )
    return Schedule() if schedule is None else schedule


@torch.no_grad()
def ais(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    schedule: Schedule | None = None,
    *,
    batch_size: int | None = None,
    compile: Compile = "auto",
    seed: int = 0,
    progress: bool | None = None,
) -> AISResult:
    """A lower bound on log p(x) by annealed importance sampling, per datum.

    Arguments:
        lvm: the model and guide; its latents are continuous, or enumerated.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform
            is drawn once from `seed`.
        schedule: chains, temperatures and where they start; ``Schedule()`` by default.
        batch_size: data a pass; by default as many as keep the device busy. Data that share a
            latent are taken all at once.
        compile: whether densities and gradients are compiled
            (``vilvm.evaluation.density_gradients``), which takes some ten seconds; "auto" does so
            where they are asked for 5000 times or more.
        seed: of the chains and the transform; torch's generators are left as they were.
        progress: whether to show a progress bar; by default on a terminal only.

    Raises:
        ContractError: the pair breaks the contract on these data, or a latent is discrete,
            degenerate or of a flat prior.

    Example:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.evaluation import Schedule, ais
        >>> found = ais(PPCA(data_dim=3, latent_dim=1), torch.randn(5, 3), Schedule(num_chains=4, num_temperatures=10))
        >>> found.bound.values.shape
        torch.Size([5])
    """
    schedule = check_schedule("ais", schedule)
    check_compile("ais", compile)
    began = time.perf_counter()
    prepared = prepared_of(
        "ais",
        lvm,
        data,
        batch_size=batch_size,
        seed=seed,
        default_size=partial(_data_in_a_pass, schedule),
    )
    batches = prepared.batches
    with prepared.drawing():
        gradients = DensityGradients(
            worth_compiling(compile, _gradients(schedule, len(batches)), _WORTH_COMPILING)
        )
        with ProgressBar(
            "annealing", len(batches) * schedule.num_temperatures, 0, progress
        ) as bar:
            results = [
                _Chains(prepared.lvm, batch.x, schedule, bar, gradients).forward()
                for batch in batches
            ]
    log_w, accepted = (
        torch.cat([w for w, _ in results], 1),
        torch.stack([a for _, a in results]).mean(0),
    )
    return AISResult(
        bound=_log_mean(log_w),
        ess=_ess(log_w).cpu(),
        acceptance=accepted.cpu(),
        schedule=schedule,
        protocol={**prepared.protocol, "seed": prepared.seed},
        seconds=time.perf_counter() - began,
    )


@torch.no_grad()
def bdmc(
    lvm: LatentVariableModel,
    schedule: Schedule | None = None,
    *,
    num_simulations: int = 100,
    like: Any = None,
    batch_size: int | None = None,
    compile: Compile = "auto",
    seed: int = 0,
    progress: bool | None = None,
) -> BDMCResult:
    """Bounds on log p(x) from below and from above, on data drawn from the model: bidirectional
    Monte Carlo.

    Arguments:
        lvm: the model and guide; its latents are continuous, or enumerated.
        schedule: as that of ``ais``, of which this is the test.
        num_simulations: data to draw; data sets, if the data of one share a latent.
        like: a batch, for a model that reads more of it than its length; a transform is drawn once
            from `seed`.
        batch_size: data a pass.
        compile: as that of ``ais``.
        seed: of data and chains.
        progress: whether to show a progress bar; by default on a terminal only.

    Raises:
        ContractError: as of ``ais``; or the model cannot be simulated without a batch; or the
            guide is where chains start, and draws something of which the latents are made.

    Example:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.evaluation import Schedule, bdmc
        >>> found = bdmc(PPCA(data_dim=3, latent_dim=1), Schedule(num_chains=4, num_temperatures=10), num_simulations=5)
        >>> found.gap.values.shape
        torch.Size([5])
    """
    seed = check_seed("bdmc: seed", seed)
    schedule = check_schedule("bdmc", schedule)
    check_contract(lvm)
    num_simulations = check_number("bdmc: num_simulations", num_simulations)
    batch_size = optional(check_number, "bdmc: batch_size", batch_size)
    check_compile("bdmc", compile)
    began = time.perf_counter()
    with simulating(lvm, like, seed) as fixed:
        where = device_of(lvm, "cpu" if fixed is None else Data(fixed).device)
        size = batch_size or max(1, _rows(where) // schedule.num_chains)
        parts = list(simulations(lvm, num_simulations, like=fixed, batch_size=size))
        gradients = DensityGradients(
            worth_compiling(compile, _gradients(schedule, 2 * len(parts)), _WORTH_COMPILING)
        )
        with ProgressBar(
            "annealing both ways", 2 * len(parts) * schedule.num_temperatures, 0, progress
        ) as bar:
            results = [_both_ways(lvm, part, schedule, bar, gradients) for part in parts]
    lower, upper = (
        torch.cat(found, 1)[:, :num_simulations] for found in zip(*results, strict=True)
    )  # of a batch that cannot be cut
    backwards = _log_mean(upper)
    return BDMCResult(
        lower=_log_mean(lower),
        upper=Estimate(-backwards.values, backwards.errors),
        ess=torch.minimum(_ess(lower), _ess(upper)).cpu(),
        schedule=schedule,
        seconds=time.perf_counter() - began,
    )


def _gradients(schedule: Schedule, ways: int) -> int:
    """About how many gradients chains ask for that go as many ways, each after a pilot or a part
    of one.
    """
    return 2 * ways * schedule.num_temperatures * schedule.leapfrog


def _both_ways(
    lvm: LatentVariableModel,
    drawn: Simulation,
    schedule: Schedule,
    bar: ProgressBar,
    gradients: DensityGradients,
) -> tuple[Tensor, Tensor]:
    chains = _Chains(lvm, drawn.batch, schedule, bar, gradients)
    return chains.forward()[0], chains.backward(chains.joint.unconstrained(drawn.latents))


def _data_in_a_pass(schedule: Schedule, lvm: LatentVariableModel, data: Data) -> int:
    """Data whose chains move at once: as many as keep the device busy, fewer where its memory is
    short.
    """
    busy = max(1, _rows(data.device) // schedule.num_chains)
    if not data.divisible:
        return busy
    few = data.subset(slice(0, busy)).x
    try:
        with preserved_rng(data.device), evaluation_mode(lvm):
            fit = Part(lvm, few, find_layout(lvm, few)).samples_that_fit()
    except ContractError:
        return busy  # the guide knows all data, or none; what is wrong is said where it is needed
    # A gradient keeps what the densities made, and makes as much again; chains keep a state and a
    # proposal.
    return max(1, busy * min(schedule.num_chains, fit // 4) // schedule.num_chains)


def _rows(where: torch.device) -> int:
    return _ROWS_CUDA if where.type == "cuda" else _ROWS_CPU


class _Chains:
    """Chains for one batch: the pilot that finds their step sizes, and the two ways."""

    def __init__(
        self,
        lvm: LatentVariableModel,
        batch: Any,
        schedule: Schedule,
        bar: ProgressBar,
        gradients: DensityGradients | None = None,
    ):
        self.joint, self.schedule, self.bar = LogJoint(lvm, batch, schedule.base), schedule, bar
        self.at = partial(
            DensityGradients(compile=False) if gradients is None else gradients, self.joint
        )
        self.betas = schedule.betas()
        spread = self.joint.draw(_PILOT_DRAWS).std(0)
        self.scale = torch.where(spread > 0, spread, torch.ones_like(spread))
        self.steps = self._pilot()

    def forward(self) -> tuple[Tensor, Tensor]:
        """log w of every chain and datum, float64, shape (K, N); and the mean acceptance by
        temperature.
        """
        state = self.at(self.joint.draw(self.schedule.num_chains))
        log_w = torch.zeros_like(state.base)
        accepted = []
        for t in range(1, len(self.betas)):
            log_w += (self.betas[t] - self.betas[t - 1]) * (state.target - state.base)
            if t < len(self.betas) - 1:
                state, probability = self._move(state, t)
                accepted.append(probability.mean())
            self.bar.advance()
        self._check(log_w)
        return log_w, torch.stack(accepted) if accepted else torch.empty(0, device=log_w.device)

    def backward(self, u: Tensor) -> Tensor:
        """log w' of every chain and datum, all from one exact posterior draw u of shape (1, N, D);
        shape (K, N).
        """
        state = self.at(u.expand(self.schedule.num_chains, *u.shape[1:]))
        log_w = torch.zeros_like(state.base)
        for t in range(len(self.betas) - 1, 0, -1):
            log_w += (self.betas[t - 1] - self.betas[t]) * (state.target - state.base)
            if t > 1:
                state, _ = self._move(state, t - 1)
            self.bar.advance()
        self._check(log_w)
        return log_w

    def _move(self, state: State, t: int) -> tuple[State, Tensor]:
        return transition(
            self.at, state, self.betas[t], self.steps[t], self.scale, self.schedule.leapfrog
        )

    def _pilot(self) -> list[Tensor]:
        """Step sizes, by temperature, each of shape (num_data,), from chains that are used for
        nothing else.
        """
        num_chains = max(4, self.schedule.num_chains // 4)
        state = self.at(self.joint.draw(num_chains))
        dimensions = self.scale.shape[-1]
        log_step = torch.full(
            self.scale.shape[:1],
            math.log(0.5 * dimensions**-0.25),
            device=state.u.device,
            dtype=state.u.dtype,
        )
        # few temperatures are far apart, and the step size has to follow
        repeats = max(1, _PILOT_LEAST // len(self.betas))
        steps = []
        for t, beta in enumerate(self.betas[:-1]):
            for _ in range(repeats if t else _PILOT_START):
                state, probability = transition(
                    self.at, state, beta, log_step.exp(), self.scale, self.schedule.leapfrog
                )
                log_step = log_step + _GAIN * (probability.mean(0) - self.schedule.acceptance).to(
                    log_step
                )
            steps.append(log_step.exp())
        return steps

    def _check(self, log_w: Tensor) -> None:
        if bool(torch.isnan(log_w).any()):
            where = torch.isnan(log_w).any(0).nonzero()[0].item()
            raise ContractError(
                f"ais: the log-density of {type(self.joint.lvm).__name__} is NaN for datum "
                f"{where} of the batch at a draw from the "
                f"{self.schedule.base}; look for a scale that reaches zero, or start from the "
                "other end (base=...)."
            )


def _log_mean(log_w: Tensor) -> Estimate:
    """log (1/K) Σ w for every datum, with the standard error that the spread of the weights tells
    (the delta method).
    """
    ess = _ess(log_w)
    num = len(log_w)
    errors = (1 / ess - 1 / num).clamp(min=0).sqrt() if num > 1 else torch.full_like(ess, math.nan)
    return Estimate((log_w.logsumexp(0) - math.log(num)).cpu(), errors.cpu())


def _ess(log_w: Tensor) -> Tensor:
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp().nan_to_num(0.0)
