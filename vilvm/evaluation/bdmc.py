"""The evidence bounded from both sides: bidirectional Monte Carlo (BDMC).

Annealed importance sampling (``vilvm.evaluation.ais``) gives a lower bound on log p(x) in the
mean. Run backwards from a draw of the exact posterior, the same chain has E[w'] = 1 / p(x), so
that −log (1/K) Σ w' is an upper bound in the mean. Exact posterior draws exist for data that the
model itself makes: (z, x) ~ p(z, x). On such data both bounds hold, and their gap limits how far
either is from log p(x) with these settings. For other data, the gap is informative if they
resemble the model's own.

Reference: Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, Grosse, Ghahramani
and Adams, 2015.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilvm._compile import Compile, check_compile
from vilvm._runtime.argument_checks import check_number, check_seed, optional
from vilvm._runtime.progress import ProgressBar
from vilvm._runtime.results import Result, frame_of
from vilvm.data.data import Data
from vilvm.evaluation._chains import (
    Chains,
    chains_in_a_pass,
    density_gradients,
    effective_chains,
    log_mean,
)
from vilvm.evaluation.estimates import FEW, Estimate
from vilvm.evaluation.schedule import Schedule, check_schedule
from vilvm.lvm import LatentVariableModel, check_contract, device_of
from vilvm.weights.simulation import simulating, simulations

__all__ = ["BDMCResult", "bdmc"]


@dataclass(frozen=True, repr=False)
class BDMCResult(Result):
    """The result of ``bdmc``, on data that the model itself made.

    Arguments:
        lower: the bound by AIS forwards, in nats per datum (per data set, if its data share a
            latent).
        upper: the bound by AIS backwards from the latents that made the data. All chains of a
            datum start there, so its Monte Carlo error is too small if they are still
            correlated; the standard error over the data (``gap.se``) is not affected.
        ess: effective sample size of the chains' weights, the smaller of the two directions, shape
            (num_simulations,).
        schedule: the settings.
        seconds: time taken.

    Examples:
        >>> from vilvm.evaluation import Schedule, bdmc
        >>> from vilvm.models.ppca import PPCA
        >>> schedule = Schedule(num_chains=4, num_temperatures=10, leapfrog=1)
        >>> found = bdmc(PPCA(data_dim=3, latent_dim=1), schedule, num_simulations=5)
        >>> found.lower.values.shape, found.reliable.shape
        (torch.Size([5]), torch.Size([5]))
    """

    lower: Estimate
    upper: Estimate
    ess: Tensor
    schedule: Schedule
    seconds: float

    @property
    def reliable(self) -> Tensor:
        """Whether the effective number of chains is at least five in both directions.

        Shape (num_simulations,). Below that, the Monte Carlo errors are unreliable.
        """
        return self.ess >= FEW

    @property
    def gap(self) -> Estimate:
        """upper − lower, at least zero in the mean; neither bound is further from log p(x)."""
        return self.upper - self.lower

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a simulation.

        Columns: simulation, lower and upper bound with their Monte Carlo errors, gap (all in nats
        per datum, or per data set if its data share a latent), ess (number of chains), reliable.
        """
        return frame_of(
            {
                "simulation": range(len(self.ess)),
                "lower": self.lower.values,
                "lower_error": self.lower.errors,
                "upper": self.upper.values,
                "upper_error": self.upper.errors,
                "gap": self.gap.values,
                "ess": self.ess,
                "reliable": self.reliable,
            }
        )

    def _headline(self) -> Mapping[str, Any]:
        return {"lower": self.lower, "upper": self.upper, "gap": self.gap}


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
    progress: bool = True,
) -> BDMCResult:
    """Lower and upper bounds on log p(x), on data drawn from the model.

    Arguments:
        lvm: the model and guide, with latents that are continuous or enumerated.
        schedule: as in ``ais``, whose accuracy ``bdmc`` measures.
        num_simulations: number of data to draw; of data sets, if the data share a latent.
        like: a batch, for a model that reads more of it than its length; a transform is drawn once
            from `seed`.
        batch_size: data per pass; by default as many as keep the device busy.
        compile: as in ``ais``.
        seed: seed of data and chains.
        progress: whether to show a progress bar.

    Returns:
        BDMCResult, in nats per datum.

    Raises:
        ContractError: as in ``ais``; or the model cannot be simulated without a batch; or chains
            start from a guide that computes the latents from other draws.

    Reference: Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, Grosse,
    Ghahramani and Adams, 2015.

    Examples:
        >>> from vilvm.evaluation import Schedule, bdmc
        >>> from vilvm.models.ppca import PPCA
        >>> schedule = Schedule(num_chains=4, num_temperatures=10, leapfrog=1)
        >>> bdmc(PPCA(data_dim=3, latent_dim=1), schedule, num_simulations=5).gap.values.shape
        torch.Size([5])
    """
    began = time.perf_counter()
    seed = check_seed("bdmc: seed", seed)
    schedule = check_schedule("bdmc", schedule)
    check_contract(lvm)
    num_simulations = check_number("bdmc: num_simulations", num_simulations)
    batch_size = optional(check_number, "bdmc: batch_size", batch_size)
    check_compile("bdmc", compile)
    with simulating(lvm, like, seed) as fixed:
        size = batch_size or _data_in_a_pass(schedule, lvm, fixed)
        parts = list(simulations(lvm, num_simulations, like=fixed, batch_size=size))
        runs = 2 * len(parts)
        gradients = density_gradients(schedule, runs, compile)
        steps = runs * schedule.num_temperatures
        results = []
        with ProgressBar("annealing both ways", steps, 0, progress) as bar:
            for part in parts:
                chains = Chains(lvm, part.batch, schedule, bar, gradients)
                forward, _ = chains.forward()
                backward = chains.backward(chains.joint.unconstrained(part.latents))
                results.append((forward, backward))
    # A batch that cannot be cut may hold more data than requested.
    lower, upper = (
        torch.cat(found, 1)[:, :num_simulations] for found in zip(*results, strict=True)
    )
    backwards = log_mean(upper)
    return BDMCResult(
        lower=log_mean(lower),
        upper=Estimate(-backwards.values, backwards.errors),
        ess=torch.minimum(effective_chains(lower), effective_chains(upper)).cpu(),
        schedule=schedule,
        seconds=time.perf_counter() - began,
    )


def _data_in_a_pass(schedule: Schedule, lvm: LatentVariableModel, like: Any) -> int:
    """Data whose chains keep the device busy."""
    default = "cpu" if like is None else Data(like).device
    return max(1, chains_in_a_pass(device_of(lvm, default)) // schedule.num_chains)
