"""The two parts of the inference gap, where they are known in closed form."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch.distributions import kl_divergence

import vilvm
from models.factor_analysis import FactorAnalysis
from models.vae import VAE
from vilvm.diagnostics.finding import Gravity
from vilvm.diagnostics.gaps import gaps
from vilvm.evaluation import Schedule


def factors(diagonal):
    """A linear Gaussian model whose posterior is correlated, and data of it."""
    torch.manual_seed(0)
    lvm = FactorAnalysis(6, 2, diagonal=diagonal)
    with torch.no_grad():
        lvm.W.copy_(torch.tensor([[2.0, 1.5]]) + 0.5 * torch.randn(6, 2))
    lvm.optimise_guide()
    return lvm, vilvm.sample(lvm, 120)["x"]


LEFT = 0.005  # nats, that the descent to the best guide may leave


def within(estimate, exact, spread=LEFT):
    """|z| < 5, where what an optimiser has left may be `spread` besides."""
    return abs(estimate.mean - exact) < 5 * estimate.mc_se + spread


def test_gaps_are_the_closed_forms():
    lvm, x = factors(diagonal=True)
    posterior = lvm.exact_posterior(x)
    best = dist.MultivariateNormal(posterior.mean, scale_tril=lvm.unconstrained_L.detach().exp().diag())
    family = kl_divergence(best, posterior).mean().item()
    assert family > 0.3
    with torch.no_grad():
        lvm.V *= 0.7
        lvm.unconstrained_L += 0.3
    guide = dist.MultivariateNormal((x - lvm.b) @ lvm.V.T, scale_tril=lvm.unconstrained_L.detach().exp().diag())
    whole = kl_divergence(guide, posterior).mean().item()
    found = gaps(lvm, x, num_samples=2000)
    assert found.evidence_by == "exact"
    assert within(found.approximation, family)
    assert within(found.amortisation, whole - family)
    assert within(found.total, whole)
    assert found.finding.gravity == Gravity.WARNING
    by_ais = gaps(lvm, x, evidence="ais", num_samples=2000)
    assert by_ais.evidence_by == "ais"
    assert within(by_ais.total, whole)


def test_an_exact_guide_has_none():
    lvm, x = factors(diagonal=False)
    found = gaps(lvm, x, num_samples=200)
    assert abs(found.total.mean) < 1e-4
    assert within(found.amortisation, 0.0)
    assert found.finding.gravity == Gravity.FINE


class HalfFrozen(torch.nn.Module):
    """Factor analysis whose guide answers to half of its data only: those whose first value is negative get the prior."""

    def __init__(self, lvm):
        super().__init__()
        self.lvm = lvm
        self.model = lvm.model

    def guide(self, x):
        seen = (x[:, :1] > 0).float()
        with pyro.plate("data", len(x)):
            covariance = seen[..., None] * (self.lvm.L @ self.lvm.L.T) + (1 - seen[..., None]) * torch.eye(2)
            pyro.sample("z", dist.MultivariateNormal(seen * ((x - self.lvm.b) @ self.lvm.V.T), covariance))


def test_a_guide_frozen_for_half_of_the_data_is_caught():
    lvm, x = factors(diagonal=False)
    found = gaps(HalfFrozen(lvm), x, num_samples=200, schedule=Schedule(num_temperatures=100))
    frozen = x[:, 0] <= 0
    assert found.evidence_by == "ais"
    assert found.finding.gravity == Gravity.WARNING
    assert found.amortisation.mean > 10 * abs(found.approximation.mean)
    assert found.amortisation.values[frozen].mean() > 3
    assert found.amortisation.values[~frozen].mean() < 0.1
    assert "encoder" in found.finding.advice
    assert all(frozen[i] for i, _ in found.worst(20))


def shared(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu.sum(-1), 1.0), obs=x)


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal])
def test_a_guide_without_amortisation_has_training_left_to_do(auto):
    torch.manual_seed(0)
    x = torch.randn(10) + 2
    lvm = vilvm.Pair(shared, auto(shared))
    covariance = 4 * torch.eye(2)
    precision = covariance.inverse() + 10 * torch.ones(2, 2)
    family = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item() if auto is AutoNormal else 0.0
    found = gaps(lvm, x, num_samples=4000, steps=1500, schedule=Schedule(num_chains=64, num_temperatures=300, base="prior"))
    assert not found.has_amortisation
    assert within(found.approximation, family, 0.02)
    assert found.amortisation.mean > 1
    assert "Train longer" in found.finding.advice


def test_it_leaves_the_model_as_it_was():
    lvm, x = VAE(6, 2), torch.bernoulli(torch.full((20, 6), 0.5))
    before = {n: p.clone() for n, p in lvm.state_dict().items()}
    found = gaps(lvm, x, num_samples=100, steps=20, schedule=Schedule(num_temperatures=5), batch_size=8)
    assert found.total.values.shape == (20,)
    assert found.amortisation.mean > 0
    assert all(torch.equal(v, before[n]) for n, v in lvm.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in lvm.parameters())


def test_what_has_no_gap_is_refused():
    x = torch.randn(10)
    with pytest.raises(vilvm.ContractError, match=r"Delta|degenerate"):
        gaps(vilvm.Pair(shared, AutoDelta(shared)), x)
    with pytest.raises(ValueError, match="unknown evidence='bdmc'"):
        gaps(VAE(6, 2), torch.zeros(4, 6), evidence="bdmc")


@pytest.mark.parametrize(("correlation", "divergence"), [(0.5, 0.143841), (0.9, 0.830366), (0.99, 1.958518)])
def test_mean_field_on_a_correlated_pair_is_off_by_the_known_divergence(correlation, divergence):
    """KL = −½ log(1 − ρ²) for the best mean field, whose variances are those of the conditionals."""
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]])

    def model(x):
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), covariance))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.randn(4)
    lvm = vilvm.Pair(model, AutoNormal(model))
    lvm.exact_log_evidence = lambda x: dist.Normal(0.0, 1.0).log_prob(x).sum()
    found = gaps(lvm, x, num_samples=20_000, steps=500)
    assert within(found.approximation, divergence, 0.02)  # two dimensions, and one datum to learn them from


def test_a_network_that_functions_close_over_is_left_as_it_was():
    net = torch.nn.Linear(1, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], 0.7))

    before = net.weight.clone()
    gaps(vilvm.Pair(model, guide), torch.randn(8), num_samples=50, steps=20, schedule=Schedule(num_temperatures=3))
    assert net.weight.requires_grad
    assert net.weight.grad is None
    assert torch.equal(net.weight, before)
