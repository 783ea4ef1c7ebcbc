"""Draws of the posterior by many short chains, from the draws of a guide.

See ``vilvm.inference._hmc`` for the chains, ``vilvm.inference._chains`` for their convergence.

References: NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural Transport, Hoffman
et al., 2019; Nested R̂, Margossian et al., 2024.
"""

import math
from typing import Any

import torch

from vilvm._runtime.argument_checks import check_positive, check_seed
from vilvm._runtime.random import seeded
from vilvm.inference._answer import answer
from vilvm.inference._approximations import Mixture
from vilvm.inference._chains import SUPERCHAINS, run_chains
from vilvm.inference._clock import Clock, Shown
from vilvm.inference._ladder import LEAST_TO_COMPILE, Found
from vilvm.inference._modes import Mode
from vilvm.inference._preparation import own_model, prepare_data, target_of
from vilvm.inference._start import guide_draws, start_of
from vilvm.inference._weighted import weigh
from vilvm.inference.posterior import Posterior

__all__ = ["refine"]

_DRAWS = 4000


def refine(
    lvm: Any,
    data: Any,
    *,
    budget: float = 60.0,
    seed: int = 0,
    progress: bool = True,
) -> Posterior:
    """Draws of the posterior by chains that start from a guide's draws.

    Arguments:
        lvm: a pair, from whose guide chains start; or a Pyro model, whose best mode is the start.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row.
        budget: seconds.
        seed: of all draws.
        progress: whether to show the progress.

    Returns:
        Posterior, whose findings say whether the chains agree, and how far the Gaussian with the
        moments of the guide was off.

    Raises:
        ContractError: the model cannot be used (see ``infer``).

    Examples:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> from vilvm.inference import refine
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> posterior = refine(model, torch.ones(4), progress=False)
        >>> posterior.trusted, round(posterior.summary()["mu"].mean, 1)
        (True, 0.8)
    """
    budget = check_positive("refine: budget", budget, "number of seconds")
    seed = check_seed("refine: seed", seed)
    with Shown(budget, progress) as show, seeded(seed):
        clock = Clock(budget, show)
        plain, batch = own_model(lvm), prepare_data(data)
        target = target_of(plain, batch)
        start = start_of(lvm, data, target)
        log_probs = torch.zeros(1, dtype=torch.float64)
        weighted = weigh(target, Mixture([start], log_probs), _DRAWS)
        clock.record("weights", target.gradients, weighted.k)
        if hasattr(lvm, "guide"):
            superchains = guide_draws(lvm, data, SUPERCHAINS)
        else:
            superchains = weighted.distinct(SUPERCHAINS)
        chains = run_chains(
            target,
            start,
            superchains,
            clock.within(1.0),
            report=show,
            compile=budget > LEAST_TO_COMPILE,
        )
        clock.record("chains", target.gradients)
        mode = Mode(start, math.nan, False)
        found = Found(
            plain, target, [mode], [start], log_probs, weighted, chains, before=weighted
        )
        return answer(found, batch, clock, True)
