"""A lower bound on the evidence by annealed importance sampling (AIS).

AIS moves draws from a base density p₀ to the posterior over T steps, by Markov chains at β₀ = 0 <
β₁ < … < β_T = 1 that leave f_β ∝ p₀^{1−β} p(x, ·)^β invariant, and weighs each with

    w = Π_t f_{β_t}(u_{t−1}) / f_{β_{t−1}}(u_{t−1}),    E[w] = p(x).

So E[log (1/K) Σ w] is a lower bound on log p(x). It becomes tighter with T and K, however poor the
guide is.

The step size of every datum and temperature is found in a pilot run of other chains. So no step
size depends on the chain that it moves, and E[w] = p(x) holds exactly.

Reference: Annealed Importance Sampling, Radford M. Neal, 2001.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vilvm._compile import Compile, check_compile
from vilvm._runtime.progress import ProgressBar
from vilvm._runtime.random import preserved_rng
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
from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode
from vilvm.weights import Prepared, find_layout
from vilvm.weights.prepared import Part, prepared_of

__all__ = ["AISResult", "ais"]


@dataclass(frozen=True, repr=False)
class AISResult(Result):
    """The result of ``ais``.

    Arguments:
        bound: a lower bound on log p(x) in the mean, in nats per datum; of all data together if
            they share a latent. Its Monte Carlo errors, by the delta method, are valid only where
            ``reliable``.
        ess: effective sample size of the chains' weights, between 1 and num_chains, shape
            (num_data,).
        acceptance: mean share of accepted trajectories by temperature, shape (T − 1,).
        schedule: the settings.
        protocol: data set, split, number of data, transform, seed.
        seconds: time taken.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import Schedule, ais
        >>> from vilvm.models.ppca import PPCA
        >>> schedule = Schedule(num_chains=4, num_temperatures=10, leapfrog=1)
        >>> found = ais(PPCA(data_dim=3, latent_dim=1), torch.randn(5, 3), schedule)
        >>> found.reliable.shape, found.acceptance.shape
        (torch.Size([5]), torch.Size([9]))
    """

    bound: Estimate
    ess: Tensor
    acceptance: Tensor
    schedule: Schedule
    protocol: dict[str, Any]
    seconds: float

    @property
    def reliable(self) -> Tensor:
        """Whether the effective number of chains is at least five, shape (num_data,).

        Below that, the bound may lie far below log p(x), and its error is unreliable.
        """
        return self.ess >= FEW

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a datum.

        Columns: datum, bound and its Monte Carlo error (nats per datum; nats of all data together
        in one row, if they share a latent), ess (number of chains), reliable.
        """
        return frame_of(
            {
                "datum": range(len(self.ess)),
                "bound": self.bound.values,
                "error": self.bound.errors,
                "ess": self.ess,
                "reliable": self.reliable,
            }
        )

    def _headline(self) -> Mapping[str, Any]:
        return {
            "bound": self.bound,
            "reliable": f"{int(self.reliable.sum())} of {len(self.ess)}",
        }

    def to_dict(self) -> dict[str, Any]:
        """Means and standard errors as plain numbers, for JSON."""
        acceptance = None
        if len(self.acceptance):
            acceptance = self.acceptance.mean().item()
        return {
            "mean": self.bound.mean,
            "se": self.bound.se,
            "mc_se": self.bound.mc_se,
            "ess": self.ess.mean().item(),
            "reliable": self.reliable.double().mean().item(),
            "acceptance": acceptance,
            "schedule": asdict(self.schedule),
            "protocol": self.protocol,
        }


@torch.no_grad()
def ais(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    schedule: Schedule | None = None,
    *,
    batch_size: int | None = None,
    compile: Compile = "auto",
    seed: int = 0,
    progress: bool = True,
) -> AISResult:
    """A lower bound on log p(x) by annealed importance sampling, per datum.

    Arguments:
        lvm: the model and guide, with latents that are continuous or enumerated; or a
            ``Prepared``, which holds the data too.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row; a transform
            is drawn once from `seed`.
        schedule: number of chains and temperatures, and the base; ``Schedule()`` by default.
        batch_size: data per pass; by default as many as keep the device busy. Data that share a
            latent stay together.
        compile: whether to compile densities and gradients
            (``vilvm.evaluation.density_gradients``), which takes some ten seconds; "auto" compiles
            for 5000 gradients or more.
        seed: seed of the chains and the transform; torch's generators are restored afterwards.
        progress: whether to show a progress bar.

    Returns:
        AISResult, in nats per datum.

    Raises:
        ContractError: the pair breaks the contract on these data, or a latent is discrete,
            degenerate or has a flat prior.

    Reference: Annealed Importance Sampling, Radford M. Neal, 2001.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import Schedule, ais
        >>> from vilvm.models.ppca import PPCA
        >>> schedule = Schedule(num_chains=4, num_temperatures=10, leapfrog=1)
        >>> ais(PPCA(data_dim=3, latent_dim=1), torch.randn(5, 3), schedule).bound.values.shape
        torch.Size([5])
    """
    began = time.perf_counter()
    schedule = check_schedule("ais", schedule)
    check_compile("ais", compile)
    size = partial(_data_in_a_pass, schedule)
    prepared = prepared_of(
        "ais", lvm, data, batch_size=batch_size, seed=seed, default_size=size
    )
    batches = prepared.batches
    gradients = density_gradients(schedule, len(batches), compile)
    steps = len(batches) * schedule.num_temperatures
    with prepared.drawing(), ProgressBar("annealing", steps, 0, progress) as bar:
        results = [
            Chains(prepared.lvm, batch.x, schedule, bar, gradients).forward()
            for batch in batches
        ]
    log_w = torch.cat([weights for weights, _ in results], 1)
    accepted = torch.stack([acceptance for _, acceptance in results]).mean(0)
    return AISResult(
        bound=log_mean(log_w),
        ess=effective_chains(log_w).cpu(),
        acceptance=accepted.cpu(),
        schedule=schedule,
        protocol={**prepared.protocol, "seed": prepared.seed},
        seconds=time.perf_counter() - began,
    )


def _data_in_a_pass(schedule: Schedule, lvm: LatentVariableModel, data: Data) -> int:
    """Data whose chains move at once: enough to keep the device busy, fewer if memory is short."""
    busy = max(1, chains_in_a_pass(data.device) // schedule.num_chains)
    if not data.divisible:
        return busy
    few = data.subset(slice(0, busy)).x
    try:
        with preserved_rng(data.device), evaluation_mode(lvm):
            fit = Part(lvm, few, find_layout(lvm, few)).samples_that_fit()
    except ContractError:
        # The guide may need all data at once; any other fault is reported later.
        return busy
    # A chain needs memory for four runs: densities, their gradients, a state and a proposal.
    return max(1, busy * min(schedule.num_chains, fit // 4) // schedule.num_chains)
