"""Amortised flow guides: exact densities, and a posterior with dependent dimensions."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.autograd.functional import jacobian

import vilvm
from vilvm.guides import IAF, RealNVP, fit_local_guide, normal
from vilvm.testing import check_lvm
from vilvm.training import one_cycle
from vilvm.weights.guide_density import guide_log_prob

HEADS = {
    "iaf": lambda d: IAF(d, context_dim=4, layers=3, hidden=(8,)),
    "real_nvp": lambda d: RealNVP(d, context_dim=4, layers=3, hidden=(8,)),
}
W = torch.tensor([[1.0, 0.9], [0.5, 0.6], [-0.8, -0.7]])


class Linear(nn.Module):
    """x ~ N(W z, ¼ I), z ~ N(0, I); the posterior's correlation is some −0.9."""

    def __init__(self, head=None):
        super().__init__()
        self.head = head or normal
        self.encoder = nn.Linear(3, getattr(head, "in_dim", 4))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ W.T, 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.head(self.encoder(x)))


@torch.no_grad()
def far_from_identity(head):
    """The flow, whose layers start near the identity, with coefficients 100 times as large."""
    networks = getattr(head, "networks", None) or head.layers.networks
    for network in networks:
        for last in (network.layers[-1], getattr(network, "skip_layer", None)):
            for parameter in last.parameters() if last else ():
                parameter.mul_(100)
    return head


def evidence(x):
    return dist.LowRankMultivariateNormal(
        torch.zeros(3), W, torch.full((3,), 0.25)
    ).log_prob(x)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dim", [2, 5])
def test_density_equals_base_over_numerical_jacobian(name, dim):
    head = far_from_identity(HEADS[name](dim).double())
    q = head(torch.randn(head.in_dim).double())

    def forward(eps):
        for step in q.transforms:
            eps = step(eps)
        return eps

    eps = q.base_dist.sample()
    log_det = jacobian(forward, eps).slogdet().logabsdet
    exact = q.base_dist.log_prob(eps) - log_det
    torch.testing.assert_close(q.log_prob(forward(eps)), exact)
    # of a value whose draw is not known any more
    torch.testing.assert_close(q.log_prob(forward(eps).clone()), exact)


@pytest.mark.parametrize("name", HEADS)
def test_replayed_draws_have_their_own_density(name):
    lvm, x = Linear(far_from_identity(HEADS[name](2))), torch.randn(5, 3)
    q = lvm.head(lvm.encoder(x))
    z = q.sample((50,))
    log_q = q.log_prob(z).double()
    replayed = guide_log_prob(lvm, x, {"z": z}).double()
    torch.testing.assert_close(replayed, log_q, rtol=1e-4, atol=1e-4)


def posterior():
    """p(z | x) = N(A x, Σ): A, Σ."""
    covariance = torch.linalg.inv(torch.eye(2) + 4 * W.T @ W)
    return 4 * covariance @ W.T, covariance


@torch.no_grad()
def exact_iaf():
    """z₂ = u₂ + k u₁, where k is a weight of the linear part; the rest of the network is zero."""
    A, covariance = posterior()
    L = torch.linalg.cholesky(covariance)
    k = L[1, 0] / L[0, 0]
    lvm = Linear(IAF(2, context_dim=0, layers=1, hidden=(8,)))
    for parameter in lvm.head.parameters():
        parameter.zero_()
    lvm.head.networks[0].skip_layer.weight[1, 0] = k
    lvm.encoder.weight.copy_(torch.stack([A[0], A[1] - k * A[0], 0 * A[0], 0 * A[0]]))
    lvm.encoder.bias[:2], lvm.encoder.bias[2:] = 0, 2 * L.diagonal().log()
    return lvm


@torch.no_grad()
def best_mean_field():
    """The mean of the posterior, and variances 1 / Λᵢᵢ."""
    A, covariance = posterior()
    lvm = Linear()
    lvm.encoder.weight.copy_(torch.cat([A, 0 * A]))
    precision = torch.linalg.inv(covariance).diagonal()
    lvm.encoder.bias[:2], lvm.encoder.bias[2:] = 0, -precision.log()
    return lvm


def test_iaf_holds_the_posterior_that_mean_field_misses():
    """Mean field loses −½ log(1 − ρ²); 5 standard errors."""
    x = 2 * torch.randn(20, 3)
    found = vilvm.log_weights(exact_iaf(), x, 10).log_weight
    torch.testing.assert_close(
        found.float(), evidence(x).expand(10, 20), rtol=1e-4, atol=1e-4
    )
    _, covariance = posterior()
    rho2 = covariance[0, 1] ** 2 / covariance.diagonal().prod()
    lost = 0.5 * math.log(1 - rho2)
    elbo = vilvm.evaluate(best_mean_field(), x, num_samples=1000).bounds["elbo"]
    assert abs(elbo.mean - evidence(x).mean().item() - lost) < 5 * elbo.mc_se
    assert lost < -0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_training_reaches_the_exact_evidence(name):
    x = torch.randn(100, 2) @ W.T + 0.5 * torch.randn(100, 3)
    lvm = Linear(HEADS[name](2))
    objective = Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1)
    vilvm.fit(lvm, x, steps=500, objective=objective, **one_cycle(0.05, 500))
    found = vilvm.evaluate(lvm, x, num_samples=500).bounds["elbo"]
    lost = evidence(x).mean().item() - found.mean
    assert -5 * found.mc_se < lost < 5 * found.mc_se + 0.03  # what Adam may leave


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_guide_keeps_the_contract(name):
    assert (
        check_lvm(lambda: (Linear(HEADS[name](2)), torch.randn(5, 3))) == "vectorised"
    )


@pytest.mark.slow
def test_guide_trains_compiled():
    x = torch.randn(64, 3)
    lvm = Linear(HEADS["iaf"](2))
    before = vilvm.evaluate(lvm, x, num_samples=50).bounds["elbo"].mean
    vilvm.fit(lvm, x, steps=200, batch_size=32, compile=True)
    assert vilvm.evaluate(lvm, x, num_samples=50).bounds["elbo"].mean > before + 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_local_guide_improves_a_flow(name):
    lvm, x = Linear(HEADS[name](2)), torch.randn(5, 3)
    local, _ = fit_local_guide(lvm, x, steps=30)
    bounds = [
        vilvm.evaluate(m, x, num_samples=200).bounds["elbo"].mean for m in (lvm, local)
    ]
    assert bounds[1] > bounds[0]


def test_sizes_that_make_no_flow_are_refused():
    with pytest.raises(
        ValueError, match="IAF: latent_dim must be a whole number, at least 2"
    ):
        IAF(1)
    with pytest.raises(ValueError, match=r"at least latent_dim = 9 units; got \[8\]"):
        IAF(9, hidden=(8,))
    with pytest.raises(ValueError, match="RealNVP: context_dim must be a whole number"):
        RealNVP(2, context_dim=-1)
