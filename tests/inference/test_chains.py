"""Chains leave the posterior invariant, and convergence is judged by known rates."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import digamma

from tests.inference.exact import curved
from vilvm.inference._approximations import Gaussian, Skewed
from vilvm.inference._chains import SUPERCHAINS, convergence, run_chains
from vilvm.inference._hmc import Sampler
from vilvm.inference._preparation import target_of
from vilvm.inference._weighted import Weighted


def counts(y):
    """Rates of Poisson distributions, whose posterior at y = 0 is Gamma(2, 2)."""
    rate = pyro.sample(
        "rate", dist.Gamma(torch.full((y.shape[1],), 2.0), 1.0).to_event(1)
    )
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate).to_event(1), obs=y)


def two(y):
    """The sign of the root is unknown: modes at ±2, some 30 deviations apart."""
    root = pyro.sample("root", dist.Normal(0.0, 5.0))
    pyro.sample("other", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(root.square(), 0.5), obs=y)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


NONE = torch.zeros(1, 2, dtype=torch.float64)  # a datum of zero counts


MAPS = {
    "Gaussian": lambda: Gaussian(vector(0.3, -0.1), vector(0.5, 0.9)),
    "skewed": lambda: Skewed(
        vector(0.2, 0.0),
        vector(0.8, 1.0),
        vector([1.0, 0.0], [0.5, 1.0]),
        vector(0.3, -0.3),
        vector(-0.1, 0.0),
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_transitions_leave_a_gamma_posterior_invariant(name):
    chains = 1000
    posterior = stats.gamma(2.0, scale=0.5)
    rate = torch.from_numpy(posterior.rvs((chains, 2), random_state=1))
    sampler = Sampler(target_of(counts, NONE), MAPS[name](), rate.log())
    sampler._mean_log_step, sampler.log_length = math.log(0.4), math.log(2.0)
    rates = [sampler.transition(adapt=False) for _ in range(8)]
    assert 0.5 < sum(rates) / len(rates) < 0.999  # proposals are accepted and refused
    moved = sampler.u
    assert abs(torch.stack([rate[:, 0].log(), moved[:, 0]]).corrcoef()[0, 1]) < 0.5
    rates = moved.exp()
    for values, exact in (
        (rates, posterior.mean()),
        (moved, digamma(2.0) - math.log(2.0)),
        (rates.square(), 1.5),
        ((rates < 0.2).double(), posterior.cdf(0.2)),
    ):
        z = (values.mean(0) - exact) / (values.std(0) / chains**0.5)
        assert z.abs().max() < 5  # fails once in 200,000 runs


@pytest.mark.slow
def test_chains_converge_to_a_gamma_posterior():
    target, map_ = target_of(counts, NONE), MAPS["Gaussian"]()
    starts = map_(torch.randn(SUPERCHAINS, 2).double())[0].detach()
    found = run_chains(target, map_, starts, lambda: False)
    assert found.converged
    assert found.divergences < 0.001
    exact = stats.gamma(2.0, scale=0.5)
    draws = torch.cat([found.u, found.u.exp(), found.u.exp().square()], -1)
    of = convergence(draws)
    moments = [digamma(2.0) - math.log(2.0), exact.mean(), exact.moment(2)]
    expected = vector(*moments).repeat_interleave(2)
    # the errors have 63 degrees of freedom: |t| < 6 fails once in 3 million runs
    assert ((draws.mean((0, 1)) - expected) / of.mcse).abs().max() < 6
    assert 0.5 < found.acceptance < 0.99


def autoregressive(length, chains, num, rho):
    """Stationary AR(1) chains of variance 1, shape (T, C, K)."""
    x = [torch.randn(chains, num, dtype=torch.float64)]
    for _ in range(length - 1):
        noise = torch.randn(chains, num, dtype=torch.float64)
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * noise)
    return torch.stack(x)


@pytest.mark.parametrize("rho", [0.0, 0.9, -0.5])
def test_convergence_of_autoregressive_chains_is_as_computed(rho):
    length, chains, num = 200, 64, 200
    of = convergence(autoregressive(length, chains, num, rho))
    # the variance of a chain's mean
    end = 2 * rho * (1 - rho**length) / (length * (1 - rho) ** 2)
    variance = ((1 + rho) / (1 - rho) - end) / length
    # means over `num` quantities, whose squared errors have 63 and 15 degrees of freedom
    error = of.mcse.square().mean() / (variance / chains) - 1
    assert abs(error) < 5 * math.sqrt(2 / 63 / num)
    # never more than the number of draws
    size = (1 / of.ess).mean() / max(variance / chains, 1 / (length * chains)) - 1
    assert (
        abs(size) < 5 * math.sqrt(2 / 63 / num) + 0.01
    )  # and an error of the total variance
    excess = (of.r_hat.square() - 1).mean() / (variance / 4) - 1
    assert abs(excess) < 5 * math.sqrt(2 / 15 / num) + 0.03
    # |t| < 7 with 63 degrees of freedom fails once in 10 million runs
    assert of.drift.abs().max() < 7
    assert abs(of.drift.square().mean() - 63 / 61) < 5 * math.sqrt(2.2 / num)


def test_constant_quantity_has_converged():
    of = convergence(torch.full((10, 64, 1), 3.0, dtype=torch.float64))
    assert (of.r_hat.item(), of.ess.item(), of.drift.item()) == (1.0, 640.0, 0.0)


def test_superchains_that_disagree_have_a_large_r_hat():
    x = autoregressive(100, 64, 1, 0.0)
    sign = torch.where(torch.arange(64) < 32, 3.0, -3.0).double()
    assert convergence(x + sign[:, None]).r_hat.item() > 2
    drifting = x + torch.linspace(0, 2, 100).double()[:, None, None]
    assert convergence(drifting).drift.abs().item() > 20


@pytest.mark.slow
def test_chains_run_in_one_dimension():
    target = target_of(counts, torch.zeros(1, 1).double())
    map_ = Gaussian(vector(0.3), vector(0.5))
    found = run_chains(target, map_, torch.zeros(SUPERCHAINS, 1).double(), Steps(200))
    assert found.u.shape[2] == 1


class Steps:
    """Whether a number of transitions is over, in place of a time."""

    def __init__(self, most):
        self.left = most

    def __call__(self):
        self.left -= 1
        return self.left <= 0


@pytest.mark.slow
def test_chains_stuck_in_two_modes_do_not_converge():
    target = target_of(two, torch.full((1,), 4.0).double())
    map_ = Gaussian(vector(0.0, 0.0), vector(2.0, 1.0))
    sign = torch.where(torch.arange(SUPERCHAINS) % 3 == 0, -2.0, 2.0).double()
    starts = torch.stack([sign, torch.randn(SUPERCHAINS).double()], 1)
    found = run_chains(target, map_, starts, Steps(110))
    assert not found.converged
    assert convergence(found.u).r_hat[0] > 1.1


def test_time_that_is_over_ends_chains_at_once():
    target = target_of(curved, vector(1.0, 4.0))
    map_ = Gaussian(torch.zeros(2).double(), torch.ones(2).double())
    found = run_chains(target, map_, torch.zeros(SUPERCHAINS, 2).double(), lambda: True)
    assert not found.converged
    assert len(found.u) == 1


def test_chains_that_have_not_moved_keep_their_coordinates():
    target = target_of(counts, NONE.double())
    map_ = Gaussian(vector(0.3, -0.1), vector(0.5, 0.9))
    sampler = Sampler(target, map_, torch.ones(4, 2).double())
    sampler.rewhiten(torch.ones(100, 2).double())
    assert sampler.map_ is map_


def test_chains_start_at_different_draws():
    weight = torch.full((20,), 1e-12).double()
    weight[7] = 1.0
    u = torch.arange(20.0).double()[:, None]
    starts = Weighted(u, weight.log(), weight, 5.0).distinct(16)
    assert len(starts.unique()) == 16
    assert 7 in starts
    weight[:15] = 0.0
    starts = Weighted(u, weight.log(), weight, 5.0).distinct(16)
    assert len(starts) == 16
    assert set(starts.flatten().tolist()) == {15, 16, 17, 18, 19}
