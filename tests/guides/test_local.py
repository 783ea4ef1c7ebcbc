"""The best guide for each datum, on conjugate models, where it has a closed form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

import vilvm
from vilvm.diagnostics.gaps import gaps
from vilvm.guides import fit_local_guide
from vilvm.guides.local import WithLocalGuide
from vilvm.lvm import ContractError


def pair(prior, likelihood, guide, evidence):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", prior)), obs=x)

    def draws(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide(x))

    lvm = vilvm.Pair(model, draws)
    lvm.exact_log_evidence = evidence
    return lvm


def gamma():
    x = dist.Poisson(3.0).sample((40,))
    lvm = pair(
        dist.Gamma(2.0, 1.0),
        dist.Poisson,
        lambda x: dist.Gamma(3.0 + 0.5 * x, 1.5),
        lambda x: dist.GammaPoisson(2.0, 1.0).log_prob(x),
    )
    return (
        lvm,
        x,
        kl_divergence(
            dist.Gamma(3.0 + 0.5 * x, torch.tensor(1.5)),
            dist.Gamma(2.0 + x, torch.tensor(2.0)),
        ),
        0.0,
    )


def beta():
    x = dist.Binomial(10, 0.4).sample((40,))
    lvm = pair(
        dist.Beta(2.0, 2.0),
        lambda z: dist.Binomial(10, z),
        lambda x: dist.Beta(3.0 + 0.3 * x, torch.tensor(4.0)),
        lambda x: dist.BetaBinomial(2.0, 2.0, 10).log_prob(x),
    )
    return (
        lvm,
        x,
        kl_divergence(
            dist.Beta(3.0 + 0.3 * x, torch.tensor(4.0)), dist.Beta(2.0 + x, 12.0 - x)
        ),
        0.0,
    )


def low_rank():
    W = torch.tensor([1.5, 1.0])
    x = 2 * torch.randn(40)

    def guide(x):
        return dist.LowRankMultivariateNormal(
            0.2 * x[:, None] * W,
            torch.tensor([[0.5], [-0.2]]),
            torch.tensor([0.6, 0.4]),
        )

    lvm = pair(
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        lambda z: dist.Normal(z @ W, 1.0),
        guide,
        lambda x: dist.Normal(0.0, (W @ W + 1).sqrt()).log_prob(x),
    )
    precision = torch.eye(2) + W.outer(W)
    mean = x[:, None] * torch.linalg.solve(precision, W)
    start = guide(x)
    start = dist.MultivariateNormal(start.loc, start.covariance_matrix)
    return (
        lvm,
        x,
        kl_divergence(start, dist.MultivariateNormal(mean, precision_matrix=precision)),
        0.0,
    )


def uniform():
    """The best uniform guide has the posterior's mean and variance σ².

    KL = −½ log 12σ² + ½ log 2πσ² + ½ = ½ log(2πe / 12).
    """
    x = 2**0.5 * torch.randn(40)
    lvm = pair(
        dist.Normal(0.0, 1.0),
        lambda z: dist.Normal(z, 1.0),
        lambda x: dist.Uniform(0.2 * x - 1.0, 0.2 * x + 2.0),
        lambda x: dist.Normal(0.0, 2**0.5).log_prob(x),
    )
    off = 0.2 * x + 0.5 - 0.5 * x
    start = -math.log(3.0) + 0.5 * math.log(math.pi) + (9 / 12 + off**2)
    return lvm, x, start, 0.5 * math.log(2 * math.pi * math.e / 12)


@pytest.mark.parametrize(
    "case",
    [
        gamma,
        uniform,
        *(pytest.param(c, marks=pytest.mark.slow) for c in (beta, low_rank)),
    ],
)
def test_gaps_of_a_family_are_exact(case):
    lvm, x, whole, family = case()
    found = gaps(lvm, x, num_samples=2000)
    assert found.evidence_by == "exact"
    assert (
        abs(found.total.mean - whole.mean().item()) < 5 * found.total.mc_se + 1e-5
    )  # float32
    left = 0.005  # nats by which the optimisation may miss the best guide
    assert (
        -5 * found.approximation.mc_se
        < found.approximation.mean - family
        < 5 * found.approximation.mc_se + left
    )


def test_distribution_with_unknown_parameters_is_refused():
    def guide(x):
        return dist.RelaxedBernoulli(
            torch.tensor(0.5), logits=x
        )  # its temperature has no constraint

    lvm = pair(dist.Beta(2.0, 2.0), lambda z: dist.Normal(z, 1.0), guide, None)
    with pytest.raises(
        ContractError, match="A RelaxedBernoulli cannot be built from its parameters"
    ):
        fit_local_guide(lvm, torch.randn(3), steps=2)


class Normalised(nn.Module):
    """A model whose encoder keeps batch statistics, and is in training."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1)
        )

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(z.unsqueeze(-1), torch.ones(2)).to_event(1), obs=x
            )

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x)[:, 0], 0.7))


def test_generators_statistics_and_mode_are_as_before():
    lvm, x = Normalised(), 3 + torch.randn(20, 2)
    before, generator = (
        {n: v.clone() for n, v in lvm.state_dict().items()},
        torch.get_rng_state(),
    )
    local, _ = fit_local_guide(lvm, x, steps=3)
    again, _ = fit_local_guide(lvm, x, steps=3)
    assert torch.equal(generator, torch.get_rng_state())
    WithLocalGuide(lvm, x)
    for state in (
        lvm.state_dict(),
        local.lvm.state_dict(),
        WithLocalGuide(lvm, x).lvm.state_dict(),
    ):
        assert state.keys() == before.keys()
        assert all(torch.equal(v, before[n]) for n, v in state.items())
    assert all(part.training for part in lvm.modules())
    assert all(
        torch.equal(a, b)
        for a, b in zip(local.offsets.values(), again.offsets.values(), strict=True)
    )
