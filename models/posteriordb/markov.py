"""Hidden Markov models of one sequence, the states summed out.

Generative story. A chain of two states z_t, whose transition probabilities are the rows θ1 and θ2
of A, emits numbers with known standard deviations:

    ``hmm_example``    θ1, θ2 ~ Dirichlet(1, 1);  μ_1 ~ N(3, 1), μ_2 ~ N(10, 1), μ_1 < μ_2;
                       y_t ~ N(μ_{z_t}, 1);
    ``hmm_drive``      θ1 ~ Dirichlet(α_1), θ2 ~ Dirichlet(α_2);
                       φ_1 ~ N(0, 1), φ_2 ~ N(3, 1), φ_1 < φ_2;  λ likewise;
                       u_t ~ N(φ_{z_t}, τ),  v_t ~ N(λ_{z_t}, ρ).

The second finds the phases of a basketball play from the reciprocal speed u of the player and his
distance v from the hoop.

Likelihood. With b_t(k) the density of the emissions of time t in state k, and B_t = diag b_t,

    p(y | θ, …) = Σ_z ½ b_1(z_1) Π_{t>1} A_{z_{t−1} z_t} b_t(z_t) = (½, ½) B_1 A B_2 … A B_T 1.

Pyro's ``DiscreteHMM`` multiplies these matrices pair by pair, in ⌈log₂ T⌉ steps. It applies a
transition before every emission; the first is uniform here. The Stan programs give each first
state the weight 1 instead of ½, so that their density is twice this one.

References: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024; Tagging Basketball Events with HMM in Stan, Imad Ali, 2019; A Tutorial on
Hidden Markov Models and Selected Applications in Speech Recognition, Lawrence R. Rabiner, 1989.
"""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from vilvm.distributions.ordered import OrderedNormal

from .problem import Given, Statement, Table

__all__ = ["POSTERIORS", "hidden_chain", "hmm_drive", "hmm_example"]


def hmm_example(y: Tensor) -> None:
    """Two states with normal emissions of unit variance.

    Arguments:
        y: shape (num_sequences, T); one sequence is one datum.

    Reference: Tagging Basketball Events with HMM in Stan, Imad Ali, 2019.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.models.posteriordb.markov import hmm_example
        >>> half = torch.full((2,), 0.5)
        >>> latents = {"theta1": half, "theta2": half, "mu": torch.tensor([3.0, 10.0])}
        >>> trace = pyro.poutine.trace(pyro.condition(hmm_example, latents))
        >>> trace.get_trace(torch.full((1, 2), 3.0)).log_prob_sum()
        tensor(-5.0620)
    """
    theta1 = pyro.sample("theta1", dist.Dirichlet(y.new_ones(2)))
    theta2 = pyro.sample("theta2", dist.Dirichlet(y.new_ones(2)))
    mu = pyro.sample("mu", OrderedNormal(y.new_tensor([3.0, 10.0]), 1.0))
    with pyro.plate("data", len(y)):
        # over time and states
        emission = dist.Normal(mu.unsqueeze(-2), 1.0)
        pyro.sample("y", hidden_chain(theta1, theta2, emission, y.shape[1]), obs=y)


def hmm_drive(x: Tensor, alpha: Tensor, tau: float, rho: float) -> None:
    """Two states with two normal emissions each.

    Arguments:
        x: u and v, shape (num_sequences, T, 2); one sequence is one datum.
        alpha: of the Dirichlet priors of the rows of A, shape (2, 2).
        tau: standard deviation of u given the state.
        rho: standard deviation of v given the state.

    Reference: Tagging Basketball Events with HMM in Stan, Imad Ali, 2019.

    Examples:
        >>> import pyro, torch
        >>> from functools import partial
        >>> from vilvm.models.posteriordb.markov import hmm_drive
        >>> half, loc = torch.full((2,), 0.5), torch.tensor([0.0, 3.0])
        >>> latents = {"theta1": half, "theta2": half, "phi": loc, "lambda": loc}
        >>> model = partial(hmm_drive, alpha=torch.ones(2, 2), tau=1.0, rho=1.0)
        >>> trace = pyro.poutine.trace(pyro.condition(model, latents))
        >>> trace.get_trace(torch.zeros(1, 2, 2)).log_prob_sum()
        tensor(-8.7034)
    """
    alpha = alpha.to(x)
    theta1 = pyro.sample("theta1", dist.Dirichlet(alpha[0]))
    theta2 = pyro.sample("theta2", dist.Dirichlet(alpha[1]))
    loc = x.new_tensor([0.0, 3.0])
    phi = pyro.sample("phi", OrderedNormal(loc, 1.0))
    lambda_ = pyro.sample("lambda", OrderedNormal(loc, 1.0))
    with pyro.plate("data", len(x)):
        # over time, states, and u and v
        means = torch.stack([phi, lambda_], -1).unsqueeze(-3)
        emission = dist.Normal(means, x.new_tensor([tau, rho])).to_event(1)
        pyro.sample("x", hidden_chain(theta1, theta2, emission, x.shape[1]), obs=x)


def hidden_chain(
    theta1: Tensor, theta2: Tensor, emission: Any, length: int
) -> dist.DiscreteHMM:
    """Sequences of a hidden chain of two states, the first of them uniform.

    Arguments:
        theta1: transition probabilities from the first state, shape (..., 2).
        theta2: from the second, shape (..., 2).
        emission: given the states, a distribution of batch shape (..., 1, 2), over time and
            states.
        length: T.

    Returns:
        A distribution of batch shape (...,) and event shape (T, *event shape of emission).

    Reference: A Tutorial on Hidden Markov Models and Selected Applications in Speech Recognition,
    Lawrence R. Rabiner, 1989.

    Examples:
        >>> import torch
        >>> from pyro.distributions import Normal
        >>> from vilvm.models.posteriordb.markov import hidden_chain
        >>> chain = hidden_chain(*torch.eye(2), Normal(torch.tensor([[0.0, 9.0]]), 1.0), 3)
        >>> chain.log_prob(torch.zeros(3))  # ½ N(0 | 0, 1)³
        tensor(-3.4500)
    """
    step = torch.stack([theta1, theta2], -2).log().unsqueeze(-3)
    steps = step.expand(*step.shape[:-3], length - 1, 2, 2)
    transitions = torch.cat([torch.zeros_like(step), steps], -3)
    return dist.DiscreteHMM(
        torch.zeros_like(theta1), transitions, emission, duration=length
    )


# The data of each
# --------------------------------------------------------------------------------------------


def _example(given: Given) -> Statement:
    return Statement(hmm_example, given["y"][None], ("mu", "theta1", "theta2"))


def _drive(given: Given) -> Statement:
    model = partial(hmm_drive, **{n: given[n] for n in ("alpha", "tau", "rho")})
    data = torch.stack([given["u"], given["v"]], -1)[None]
    return Statement(model, data, ("theta1", "theta2", "phi", "lambda"))


POSTERIORS: Table = {
    "hmm_example-hmm_example": _example,
    "bball_drive_event_1-hmm_drive_1": _drive,
}
