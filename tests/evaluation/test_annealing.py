"""Annealed importance sampling and bidirectional Monte Carlo, where log p(x) is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

import vilvm
from models.ppca import PPCA
from vilvm.evaluation import Schedule, ais, bdmc
from vilvm.evaluation.annealing import _Chains
from vilvm.evaluation.hmc import start, transition
from vilvm.progress import ProgressBar
from vilvm.weights import sample
from vilvm.weights.joint import Joint


def linear(guide_scale=1.0):
    """A linear Gaussian model and data, its guide exact but for its scale and a shift."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator) @ torch.randn(2, 5, generator=generator) + 0.5 * torch.randn(
        200, 5, generator=generator
    )
    lvm = PPCA(5, 2).maximise(x)
    with torch.no_grad():
        lvm.log_s += math.log(guide_scale)
        lvm.V *= 0.8 if guide_scale != 1 else 1
    return lvm, x


def chains(lvm, x, schedule):
    return _Chains(lvm, x, schedule, ProgressBar("", 1, show=False))


def mean_is_one(log_ratio):
    """Whether E[ratio] = 1, |z| < 5, ratios of different data being independent; shape (chains, data)."""
    ratio = log_ratio.exp().mean(0)
    return abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(ratio))


@pytest.mark.parametrize("path", ["linear", "sigmoid"])
@pytest.mark.parametrize("base", ["guide", "prior"])
def test_weights_are_unbiased_both_ways(base, path):
    torch.manual_seed(0)
    lvm, x = linear(1.5)
    exact = lvm.exact_log_evidence(x).detach()
    run = chains(lvm, x, Schedule(num_chains=32, num_temperatures=10, leapfrog=3, base=base, path=path))
    assert mean_is_one(run.forward()[0] - exact)
    posterior = lvm.exact_posterior(x).sample().unsqueeze(0)
    assert mean_is_one(run.backward(posterior) + exact)


def test_the_chain_leaves_its_density_alone():
    torch.manual_seed(0)
    lvm, x = linear()
    joint = Joint(lvm, x)
    exact = lvm.exact_posterior(x)
    state = start(joint, exact.sample((50,)))
    for _ in range(20):
        state, probability = transition(joint, state, 1.0, torch.full((200,), 0.8), lvm.log_s.detach().exp().expand(200, 2), 4)
    assert 0.5 < probability.mean() < 0.999
    white = (state.u - exact.mean) / lvm.log_s.exp().detach()
    n = white.numel()
    assert abs(white.mean()) < 5 / math.sqrt(n)
    assert abs(white.var() - 1) < 5 * math.sqrt(2 / n)


def test_bounds_meet_at_the_evidence():
    lvm, x = linear(2.0)
    exact = vilvm.evaluate(lvm, x, num_samples=2, bounds="exact").bounds["exact"]
    assert torch.equal(exact.values, lvm.exact_log_evidence(x).detach().double())
    gaps = []
    for temperatures in (3, 100):
        schedule = Schedule(num_chains=8, num_temperatures=temperatures, base="prior")
        below = ais(lvm, x, schedule)
        assert below.bound.mean - exact.mean < 5 * below.bound.mc_se
        both = bdmc(lvm, schedule, num_simulations=200)
        gaps.append(both.gap)
        assert both.gap.mean > -5 * both.gap.mc_se
    assert gaps[1].mean < gaps[0].mean / 5
    assert abs(below.bound.mean - exact.mean) < 5 * below.bound.mc_se + 0.01
    assert len(below.acceptance) == 99
    assert 0.5 < below.acceptance[50:].mean() < 0.8


def test_bdmc_brackets_the_evidence_of_the_data_it_drew():
    torch.manual_seed(0)
    lvm, _ = linear(1.5)
    drawn = sample(lvm, 200)
    run = chains(lvm, drawn["x"], Schedule(num_temperatures=50))
    lower = run.forward()[0].logsumexp(0) - math.log(16)
    upper = -(run.backward(drawn["z"].unsqueeze(0)).logsumexp(0) - math.log(16))
    exact = lvm.exact_log_evidence(drawn["x"]).detach()
    assert lower.mean() - 0.02 < exact.mean() < upper.mean() + 0.02
    assert (upper - lower).mean() < 0.2


def mean_of(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


@pytest.mark.parametrize("base", ["guide", "prior"])
def test_data_that_share_a_latent_have_one_evidence(base):
    torch.manual_seed(0)
    x = torch.randn(6) + 1
    lvm = vilvm.Pair(mean_of, AutoMultivariateNormal(mean_of))
    found = ais(lvm, x, Schedule(num_chains=64, num_temperatures=100, base=base))
    exact = dist.MultivariateNormal(torch.zeros(6), torch.eye(6) + 4).log_prob(x).item()
    assert found.bound.values.shape == (1,)
    assert abs(found.bound.mean - exact) < 5 * found.bound.mc_se
    assert found.bound.mc_se < 0.15
    both = bdmc(lvm, Schedule(num_temperatures=60, leapfrog=3, base="prior"), num_simulations=2, like=x)
    assert both.lower.values.shape == (2,)
    assert abs(both.gap.mean) < 0.2 + 5 * both.gap.mc_se


def test_a_seed_fixes_the_result_and_leaves_torch_as_it_was():
    lvm, x = linear()
    schedule = Schedule(num_chains=4, num_temperatures=5, leapfrog=1)
    before = torch.get_rng_state()
    first, second = ais(lvm, x[:10], schedule), ais(lvm, x[:10], schedule)
    assert torch.equal(first.bound.values, second.bound.values)
    assert torch.equal(before, torch.get_rng_state())
    assert ais(lvm, x[:10], schedule, batch_size=3).bound.values.shape == (10,)
    assert not torch.equal(first.bound.values, ais(lvm, x[:10], schedule, seed=1).bound.values)
    assert not any(p.grad is not None for p in lvm.parameters())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"path": "cosine"}, "unknown path='cosine'; choose from"),
        ({"base": "posterior"}, "unknown base='posterior'; choose from"),
        ({"num_temperatures": 0}, "num_temperatures must be a whole number, at least 1; got 0"),
        ({"acceptance": 1.0}, "acceptance must be between 0 and 1; got 1.0"),
    ],
)
def test_options_are_checked(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Schedule(**options)


def test_schedules_go_from_zero_to_one():
    for path in ("linear", "sigmoid"):
        betas = Schedule(num_temperatures=7, path=path).betas()
        assert betas[0] == 0
        assert betas[-1] == 1
        assert len(betas) == 8
        assert betas == sorted(betas)
    assert Schedule(num_temperatures=2).betas()[1] == pytest.approx(0.5)


def test_a_model_that_reads_its_batch_is_simulated_like_one():
    lvm = vilvm.Pair(mean_of, AutoMultivariateNormal(mean_of))
    with pytest.raises(vilvm.ContractError, match="pass like="):
        bdmc(lvm, num_simulations=2)


def test_an_exact_evidence_that_there_is_not_is_refused():
    lvm = vilvm.Pair(mean_of, AutoMultivariateNormal(mean_of))
    with pytest.raises(vilvm.ContractError, match="has no method exact_log_evidence"):
        vilvm.evaluate(lvm, torch.zeros(3), bounds="exact")
