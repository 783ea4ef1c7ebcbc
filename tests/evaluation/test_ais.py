"""Annealed importance sampling and bidirectional Monte Carlo, where log p(x) is known."""

import math
from functools import partial
from importlib import import_module

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

import vilvm
from vilvm._runtime.progress import ProgressBar
from vilvm._runtime.random import seeded
from vilvm.data.transforms import DynamicBinarisation
from vilvm.evaluation import Schedule, ais, bdmc
from vilvm.evaluation._chains import Chains
from vilvm.evaluation.hmc import start, transition
from vilvm.models.ppca import PPCA
from vilvm.weights import sample, simulate
from vilvm.weights.log_joint import LogJoint


def linear(guide_scale=1.0):
    """A linear Gaussian model and data, with a guide that is exact up to a scale and a shift."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator) @ torch.randn(
        2, 5, generator=generator
    ) + 0.5 * torch.randn(200, 5, generator=generator)
    lvm = PPCA(5, 2).maximise(x)
    with torch.no_grad():
        lvm.log_s += math.log(guide_scale)
        lvm.V *= 0.8 if guide_scale != 1 else 1
    return lvm, x


def chains(lvm, x, schedule):
    return Chains(lvm, x, schedule, ProgressBar("", 1, show=False))


def mean_is_one(log_ratio):
    """Whether E[ratio] = 1 within 5 standard errors; log-ratios of shape (chains, data).

    Ratios of different data are independent.
    """
    ratio = log_ratio.exp().mean(0)
    return abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(ratio))


@pytest.mark.slow
@pytest.mark.parametrize(("base", "path"), [("guide", "linear"), ("prior", "sigmoid")])
def test_weights_are_unbiased_in_both_directions(base, path):
    torch.manual_seed(0)
    lvm, x = linear(1.5)
    exact = lvm.exact_log_evidence(x).detach()
    run = chains(
        lvm,
        x,
        Schedule(num_chains=16, num_temperatures=10, leapfrog=3, base=base, path=path),
    )
    assert mean_is_one(run.forward()[0] - exact)
    posterior = lvm.exact_posterior(x).sample().unsqueeze(0)
    assert mean_is_one(run.backward(posterior) + exact)


def test_transitions_leave_the_density_invariant():
    torch.manual_seed(0)
    lvm, x = linear()
    joint = LogJoint(lvm, x)
    exact = lvm.exact_posterior(x)
    state = start(joint, exact.sample((50,)))
    for _ in range(20):
        state, probability = transition(
            partial(start, joint),
            state,
            1.0,
            torch.full((200,), 0.8),
            scale=lvm.log_s.detach().exp().expand(200, 2),
            leapfrog=4,
        )
    assert 0.5 < probability.mean() < 0.999
    white = (state.u - exact.mean) / lvm.log_s.exp().detach()
    n = white.numel()
    assert abs(white.mean()) < 5 / math.sqrt(n)
    assert abs(white.var() - 1) < 5 * math.sqrt(2 / n)


@pytest.mark.slow
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


@pytest.mark.slow
def test_bdmc_brackets_the_evidence_of_simulated_data():
    torch.manual_seed(0)
    lvm, _ = linear(1.5)
    drawn = sample(lvm, 80)
    run = chains(lvm, drawn["x"], Schedule(num_temperatures=50, leapfrog=3))
    lower = run.forward()[0].logsumexp(0) - math.log(16)
    upper = -(run.backward(drawn["z"].unsqueeze(0)).logsumexp(0) - math.log(16))
    exact = lvm.exact_log_evidence(drawn["x"]).detach()
    assert lower.mean() - 0.02 < exact.mean() < upper.mean() + 0.02
    assert (upper - lower).mean() < 0.2


def mean_of(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["guide", "prior"])
def test_data_sharing_a_latent_have_one_evidence(base):
    torch.manual_seed(0)
    x = torch.randn(6) + 1
    lvm = vilvm.Pair(mean_of, AutoMultivariateNormal(mean_of))
    found = ais(lvm, x, Schedule(num_chains=64, num_temperatures=100, base=base))
    exact = dist.MultivariateNormal(torch.zeros(6), torch.eye(6) + 4).log_prob(x).item()
    assert found.bound.values.shape == (1,)
    assert abs(found.bound.mean - exact) < 5 * found.bound.mc_se
    assert found.bound.mc_se < 0.15
    both = bdmc(
        lvm,
        Schedule(num_temperatures=60, leapfrog=3, base="prior"),
        num_simulations=2,
        like=x,
    )
    assert both.lower.values.shape == (2,)
    assert abs(both.gap.mean) < 0.2 + 5 * both.gap.mc_se


@pytest.fixture
def short_pilot(monkeypatch):
    """A short pilot, for tests that need no good step sizes."""
    monkeypatch.setattr(import_module("vilvm.evaluation._chains"), "_PILOT_START", 3)
    monkeypatch.setattr(import_module("vilvm.evaluation._chains"), "_PILOT_LEAST", 15)


@pytest.mark.usefixtures("short_pilot")
def test_seed_fixes_result_and_restores_torch_generators():
    lvm, x = linear()
    schedule = Schedule(num_chains=4, num_temperatures=5, leapfrog=1)
    before = torch.get_rng_state()
    first, second = ais(lvm, x[:10], schedule), ais(lvm, x[:10], schedule)
    assert torch.equal(first.bound.values, second.bound.values)
    assert torch.equal(before, torch.get_rng_state())
    assert ais(lvm, x[:10], schedule, batch_size=3).bound.values.shape == (10,)
    assert not torch.equal(
        first.bound.values, ais(lvm, x[:10], schedule, seed=1).bound.values
    )
    assert not any(p.grad is not None for p in lvm.parameters())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"path": "cosine"}, "unknown path='cosine'; choose from"),
        ({"base": "posterior"}, "unknown base='posterior'; choose from"),
        (
            {"num_temperatures": 0},
            "num_temperatures must be a whole number, at least 1; got 0",
        ),
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


def test_model_that_reads_its_batch_is_simulated():
    lvm = vilvm.Pair(mean_of, AutoMultivariateNormal(mean_of))
    with pytest.raises(vilvm.ContractError, match="pass like="):
        bdmc(lvm, num_simulations=2)


def test_missing_exact_evidence_is_refused():
    lvm = vilvm.Pair(mean_of, AutoMultivariateNormal(mean_of))
    with pytest.raises(vilvm.ContractError, match="has no method exact_log_evidence"):
        vilvm.evaluate(lvm, torch.zeros(3), bounds="exact")


def causes(x):
    """x ~ N(Σ z, ¼) of three causes in a plate left of the data's, so p(x) = N(0, 3¼)."""
    data = pyro.plate("data", len(x), dim=-1)
    with pyro.plate("causes", 3, dim=-2), data:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with data:
        pyro.sample("x", dist.Normal(z.sum(-2, keepdim=True), 0.5), obs=x)


def causes_of(x):
    """The posterior's marginals, without its correlations."""
    with pyro.plate("causes", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x / 3.25, (1 - 1 / 3.25) ** 0.5))


@pytest.mark.slow
@pytest.mark.parametrize(("base", "given"), [("guide", True), ("prior", False)])
def test_bounds_hold_with_plate_left_of_data_plate(base, given):
    lvm, schedule = (
        vilvm.Pair(causes, causes_of),
        Schedule(num_chains=8, num_temperatures=25, leapfrog=2, base=base),
    )
    like = torch.zeros(75) if given else None
    with seeded(0):
        drawn = simulate(lvm, 150, like=like)
    x = torch.cat([s.batch for s in drawn])
    z = torch.cat([s.latents["z"] for s in drawn], -1)
    assert z.shape == (1, 3, 150)
    residual = x - z[0].sum(0)
    # The latents generated the data.
    assert abs(residual.var() - 0.25) < 5 * 0.25 * math.sqrt(2 / 150)
    found = bdmc(lvm, schedule, num_simulations=150, like=like)
    with seeded(0):
        # The simulations of bdmc with the same seed.
        x = torch.cat([s.batch for s in simulate(lvm, 150, like=like)])
    exact = dist.Normal(0.0, 3.25**0.5).log_prob(x).double()
    lower, upper = found.lower.values - exact, found.upper.values - exact
    assert lower.mean() < 5 * lower.std() / math.sqrt(150)
    assert upper.mean() > -5 * upper.std() / math.sqrt(150)
    assert 0 < found.gap.mean < 1


@pytest.mark.usefixtures("short_pilot")
def test_number_of_simulations_is_as_asked():
    def model(batch):
        x, scale = batch
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(batch):
        with pyro.plate("data", len(batch[0])):
            pyro.sample("z", dist.Normal(batch[0] / 2, 0.7))

    schedule = Schedule(num_chains=4, num_temperatures=5, leapfrog=1)
    # The second tensor does not hold one row per datum, so the batch cannot be cut.
    for scale in (torch.linspace(0.5, 2, 8), torch.tensor(0.7)):
        like = (torch.zeros(8), scale)
        assert bdmc(
            vilvm.Pair(model, guide), schedule, num_simulations=11, like=like
        ).gap.values.shape == (11,)
    assert [
        len(s.batch[0])
        for s in simulate(
            vilvm.Pair(model, guide), 11, like=(torch.zeros(8), torch.ones(8))
        )
    ] == [8, 3]


@pytest.mark.usefixtures("short_pilot")
def test_transform_of_like_is_applied():
    like = vilvm.Data(torch.full((4, 5), 0.5), transform=DynamicBinarisation())
    seen = []

    class Listening(PPCA):
        def model(self, x):
            seen.append(x.unique().tolist())
            super().model(x)

    bdmc(
        Listening(5, 2),
        Schedule(num_chains=4, num_temperatures=2, leapfrog=1),
        num_simulations=4,
        like=like,
    )
    assert set(seen[0]) <= {0.0, 1.0}


@pytest.mark.slow
def test_few_effective_chains_are_unreliable():
    lvm, x = linear()
    good = Schedule(num_temperatures=20, leapfrog=2)
    assert ais(lvm, x[:8], good).reliable.all()
    assert bdmc(lvm, good, num_simulations=8).reliable.all()
    far = ais(
        lvm, 20 * x[:8], Schedule(num_chains=16, num_temperatures=1, base="prior")
    )
    assert not far.reliable.any()
    assert far.to_dict()["reliable"] == 0
    exact = lvm.exact_log_evidence(20 * x[:8]).detach()
    # The errors are too small there.
    assert (exact - far.bound.values > 5 * far.bound.errors).any()


def test_model_observing_a_transformed_batch_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x + 1)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def placeholder(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x",
                dist.Normal(z, 1.0),
                obs=x + 1 if x.dim() == 1 else x.new_zeros(len(x)),
            )

    with pytest.raises(
        vilvm.ContractError, match="is not the value of its one observed site"
    ):
        simulate(vilvm.Pair(placeholder, guide), 3)
    with pytest.raises(
        vilvm.ContractError, match="is neither one of the batch's tensors"
    ):
        simulate(vilvm.Pair(model, guide), 3, like=torch.zeros(3))
