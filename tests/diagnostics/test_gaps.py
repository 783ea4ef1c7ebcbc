"""Both parts of the inference gap, in closed form."""

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from scipy.stats import binom
from torch.distributions import kl_divergence

import vilvm
from vilvm.diagnostics._gap_sizes import _shorter
from vilvm.diagnostics.finding import Severity
from vilvm.diagnostics.gaps import Bound, Gaps, gaps
from vilvm.evaluation import Estimate, Schedule
from vilvm.models.factor_analysis import FactorAnalysis
from vilvm.models.vae import VAE


def factors(diagonal):
    """A linear Gaussian model whose posterior is correlated, and data of it."""
    torch.manual_seed(0)
    lvm = FactorAnalysis(6, 2, diagonal=diagonal)
    with torch.no_grad():
        lvm.W.copy_(torch.tensor([[2.0, 1.5]]) + 0.5 * torch.randn(6, 2))
    lvm.optimise_guide()
    return lvm, vilvm.sample(lvm, 120)["x"]


LEFT = 0.005  # nats that the descent to the best guide may leave


def within(estimate, exact, spread=LEFT):
    """|z| < 5, after a tolerance of `spread` for incomplete optimisation."""
    return abs(estimate.mean - exact) < 5 * estimate.mc_se + spread


def off():
    """A linear Gaussian model whose guide has the wrong family and wrong parameters, and data.

    Also returns the gap in nats of the family alone, and the total gap.
    """
    lvm, x = factors(diagonal=True)
    posterior = lvm.exact_posterior(x)
    best = dist.MultivariateNormal(
        posterior.mean, scale_tril=lvm.unconstrained_L.detach().exp().diag()
    )
    family = kl_divergence(best, posterior).mean().item()
    assert family > 0.3
    with torch.no_grad():
        lvm.V *= 0.7
        lvm.unconstrained_L += 0.3
    guide = dist.MultivariateNormal(
        (x - lvm.b) @ lvm.V.T, scale_tril=lvm.unconstrained_L.detach().exp().diag()
    )
    return lvm, x, family, kl_divergence(guide, posterior).mean().item()


def test_gaps_equal_the_closed_forms():
    lvm, x, family, whole = off()
    found = gaps(lvm, x, num_samples=1000, steps=200)
    assert found.evidence_by == "exact"
    assert within(found.approximation, family)
    assert within(found.amortisation, whole - family)
    assert within(found.total, whole)
    assert found.finding.severity == Severity.WARNING


@pytest.mark.slow
def test_gap_to_annealed_evidence_equals_closed_form():
    lvm, x, _, whole = off()
    by_ais = gaps(lvm, x, evidence="ais", num_samples=2000, steps=20)
    assert by_ais.evidence_by == "ais from the guide"
    assert within(by_ais.total, whole)


def test_exact_guide_has_no_gap():
    lvm, x = factors(diagonal=False)
    found = gaps(lvm, x, num_samples=200, steps=200)
    assert abs(found.total.mean) < 1e-4
    assert within(found.amortisation, 0.0)
    assert found.finding.severity == Severity.OK


class HalfFrozen(torch.nn.Module):
    """Factor analysis whose guide is the prior for data with a negative first value."""

    def __init__(self, lvm):
        super().__init__()
        self.lvm = lvm
        self.model = lvm.model

    def guide(self, x):
        seen = (x[:, :1] > 0).float()
        with pyro.plate("data", len(x)):
            covariance = seen[..., None] * (self.lvm.L @ self.lvm.L.T) + (
                1 - seen[..., None]
            ) * torch.eye(2)
            pyro.sample(
                "z",
                dist.MultivariateNormal(
                    seen * ((x - self.lvm.b) @ self.lvm.V.T), covariance
                ),
            )


@pytest.mark.slow
def test_guide_frozen_for_half_the_data_is_detected():
    lvm, x = factors(diagonal=False)
    found = gaps(
        HalfFrozen(lvm),
        x,
        num_samples=200,
        schedule=Schedule(num_temperatures=100, leapfrog=2),
    )
    frozen = x[:, 0] <= 0
    assert set(found.bounds) == {
        "ais from the guide",
        "ais from the prior",
        "iwae",
        "elbo",
    }
    assert found.finding.severity == Severity.WARNING
    assert found.amortisation.mean > 10 * abs(found.approximation.mean)
    assert found.amortisation.values[frozen].mean() > 3
    assert found.amortisation.values[~frozen].mean() < 0.1
    assert "encoder" in found.finding.advice
    assert all(frozen[i] for i, _ in found.worst(20))


def shared(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu.sum(-1), 1.0), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal])
def test_second_gap_without_encoder_measures_training(auto):
    torch.manual_seed(0)
    x = torch.randn(10) + 2
    lvm = vilvm.Pair(shared, auto(shared))
    covariance = 4 * torch.eye(2)
    precision = covariance.inverse() + 10 * torch.ones(2, 2)
    family = (
        0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
        if auto is AutoNormal
        else 0.0
    )
    found = gaps(
        lvm,
        x,
        num_samples=4000,
        steps=1500,
        schedule=Schedule(num_chains=64, num_temperatures=300, base="prior"),
    )
    assert not found.has_amortisation
    assert within(found.approximation, family, 0.02)
    assert found.amortisation.mean > 1
    assert "Train longer" in found.finding.advice


@pytest.mark.slow
def test_model_is_not_changed():
    lvm, x = VAE(6, 2), torch.bernoulli(torch.full((20, 6), 0.5))
    before = {n: p.clone() for n, p in lvm.state_dict().items()}
    found = gaps(
        lvm,
        x,
        num_samples=100,
        steps=20,
        schedule=Schedule(num_temperatures=5),
        batch_size=8,
    )
    assert found.total.values.shape == (20,)
    assert found.amortisation.mean > 0
    assert all(torch.equal(v, before[n]) for n, v in lvm.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in lvm.parameters())


def test_pairs_without_a_gap_are_refused():
    x = torch.randn(10)
    with pytest.raises(vilvm.ContractError, match=r"Delta|degenerate"):
        gaps(vilvm.Pair(shared, AutoDelta(shared)), x)
    with pytest.raises(ValueError, match="unknown evidence='bdmc'"):
        gaps(VAE(6, 2), torch.zeros(4, 6), evidence="bdmc")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("correlation", "divergence"),
    [
        pytest.param(0.5, 0.143841, marks=pytest.mark.slow),
        (0.9, 0.830366),
        pytest.param(0.99, 1.958518, marks=pytest.mark.slow),
    ],
)
def test_mean_field_gap_equals_known_divergence(correlation, divergence):
    """The best mean field has the conditional variances, and KL = −½ log(1 − ρ²)."""
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]])

    def model(x):
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), covariance))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.randn(4)
    lvm = vilvm.Pair(model, AutoNormal(model))
    lvm.exact_log_evidence = lambda x: dist.Normal(0.0, 1.0).log_prob(x).sum()
    found = gaps(lvm, x, num_samples=5000, steps=300)
    # two dimensions, fitted to one datum
    assert within(found.approximation, divergence, 0.02)


@pytest.mark.slow
def test_closed_over_networks_are_not_changed():
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
    gaps(
        vilvm.Pair(model, guide),
        torch.randn(8),
        num_samples=50,
        steps=20,
        schedule=Schedule(num_temperatures=3),
    )
    assert net.weight.requires_grad
    assert net.weight.grad is None
    assert torch.equal(net.weight, before)


class TwoModes(torch.nn.Module):
    """z ~ N(0, 3²), x ~ N(z², σ²), with one z for all data or one per datum.

    The guide covers the positive one of two modes, or both.
    """

    def __init__(self, shared=False):
        super().__init__()
        self.shared = shared

    def model(self, x):
        plate = pyro.plate("data", len(x))
        if self.shared:
            z = pyro.sample("z", dist.Normal(0.0, 3.0))
            with plate:
                pyro.sample("x", dist.Normal(z**2, 2.0), obs=x)
            return
        with plate:
            z = pyro.sample("z", dist.Normal(0.0, 3.0))
            pyro.sample("x", dist.Normal(z**2, 0.5), obs=x)

    def guide(self, x):
        if self.shared:
            root = x.mean().sqrt()
            pyro.sample("z", dist.Normal(root, 1 / (root * math.sqrt(len(x)))))
            return
        with pyro.plate("data", len(x)):
            root = x.sqrt()
            pyro.sample("z", dist.Normal(root, 0.25 / root))

    def exact(self, x):
        """log p(x), by the trapezoid rule."""
        z = torch.linspace(-12, 12, 200_001).double()
        prior = dist.Normal(0.0, 3.0).log_prob(z)
        if self.shared:
            fit = dist.Normal(z**2, 2.0)
            return (prior + sum(fit.log_prob(value) for value in x)).logsumexp(
                0
            ) + math.log(24 / 200_000)
        return torch.stack(
            [(prior + dist.Normal(z**2, 0.5).log_prob(v)).logsumexp(0) for v in x]
        ) + math.log(24 / 200_000)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_annealing_from_prior_detects_dropped_mode(shared):
    x = 4 + 5 * torch.rand(30)
    x = x.mean() + 2 * torch.randn(12) if shared else x
    lvm = TwoModes(shared)
    schedule = Schedule(
        num_chains=300 if shared else 32, num_temperatures=200, leapfrog=3
    )
    found = gaps(lvm, x, num_samples=500, steps=20, schedule=schedule)
    exact = lvm.exact(x).mean().item()
    assert found.evidence_by == "ais from the prior"
    assert within(found.evidence, exact, 0.02)
    assert (
        abs(found.bounds["ais from the guide"].estimate.mean + math.log(2) - exact)
        < 0.05
    )
    assert found.finding.severity == Severity.WARNING
    assert "misses part of the posterior" in found.finding.verdict
    assert "bounded below" in found.finding.verdict


def test_exact_evidence_detects_dropped_mode():
    class Known(TwoModes):
        def exact_log_evidence(self, x):
            return self.exact(x)

    found = gaps(Known(), 4 + 5 * torch.rand(20), num_samples=500, steps=20)
    assert within(found.total, math.log(2), 0.02)
    assert found.finding.severity == Severity.WARNING
    assert "misses part of the posterior" in found.finding.verdict


def judged(truth, *, short=0.0, error=0.01, ess=100.0, **bounds):
    """Gaps of data whose guides are `truth` nats from their posterior.

    Annealing from the guide finds all but `short` of it.
    """
    truth = torch.as_tensor(truth).double()
    few = torch.as_tensor(ess).double().expand(truth.shape)
    noise = error * torch.randn(truth.shape).double()
    at_guide = Bound(
        Estimate(truth - short + noise, torch.full_like(truth, error)), few
    )
    zero = Estimate(torch.zeros_like(truth), torch.full_like(truth, 0.001))
    found = {
        "ais from the guide": at_guide,
        **bounds,
        "elbo": Bound(zero, torch.full_like(truth, torch.inf)),
    }
    return Gaps(found, zero, zero, torch.arange(len(truth)))


def test_gap_that_no_fit_divided_is_not_given_in_parts():
    whole = judged(torch.full((50,), 2.0))
    assert whole.is_divided
    assert whole.approximation.mean + whole.amortisation.mean == pytest.approx(
        2.0, abs=0.1
    )
    cut = dataclasses.replace(whole, cut="100 of 1000 draws, the best guide's fit")
    assert cut.total.mean == whole.total.mean
    assert math.isnan(cut.approximation.mean)
    assert math.isnan(cut.amortisation.mean)
    assert "2.00 ±" in cut.finding.verdict
    assert "was not measured" in cut.finding.verdict
    assert "more time" in cut.finding.advice


def test_evidence_below_the_elbo_is_a_warning():
    assert judged(torch.full((50,), 0.05)).finding.severity == Severity.OK
    for lost in (50, 1):
        truth = torch.full((50,), 0.05)
        truth[:lost] = -47_250.0
        found = judged(truth)
        assert found.unestimated.sum() == lost
        assert found.finding.severity == Severity.WARNING
        assert "could not be estimated" in found.finding.verdict
        assert found.total.values.min() > -1  # because the best ELBO is a bound too


def test_exact_evidence_below_the_elbo_is_a_warning():
    class Wrong(TwoModes):
        def exact_log_evidence(self, x):
            return self.exact(x) - 5

    found = gaps(Wrong(), 4 + 5 * torch.rand(10), num_samples=200, steps=10).finding
    assert found.severity == Severity.WARNING
    assert "exact_log_evidence" in found.advice


@pytest.mark.parametrize(
    ("gap", "severity"),
    [(20.0, Severity.WARNING), (0.5, Severity.NOTE), (0.0, Severity.OK)],
)
def test_few_bad_data_are_not_hidden_by_mean(gap, severity):
    truth = torch.full((400,), 0.01)
    truth[[3, 50, 399]] += gap
    found = judged(truth)
    assert found.total.mean - 3 * found.total.mc_se < 0.2
    assert found.finding.severity == severity
    assert {i for i, _ in found.worst(3)} == {3, 50, 399} or not gap
    assert ("399 (" in found.finding.verdict) == bool(gap)
    renamed = dataclasses.replace(found, index=found.index + 1000)
    assert {i for i, _ in renamed.worst(3)} == {1003, 1050, 1399} or not gap


@pytest.mark.slow
def test_noise_does_not_decide_the_bound():
    """The largest of several noisy bounds must not be biased upwards.

    200 sets of 30 data; all bounds equal the truth up to noise of the same size.
    """
    means, alarms = [], 0
    for _ in range(200):
        bounds = {
            n: Bound(
                Estimate(
                    0.3 * torch.randn(30).double(), torch.full((30,), 0.3).double()
                ),
                torch.full((30,), 20.0),
            )
            for n in ("iwae", "ais from the prior")
        }
        found = judged(torch.zeros(30), error=0.3, **bounds)
        means.append(found.evidence.mean)
        alarms += found.finding.severity >= Severity.WARNING
    # Three tests per datum at a rate of 0.01 each: above, below, and missed.
    assert alarms <= binom.isf(1e-4, 200, 0.03)
    means = torch.tensor(means)
    # The tolerance of 0.01 allows one replaced bound in a hundred sets.
    assert abs(means.mean()) < 5 * means.std() / math.sqrt(200) + 0.01


@pytest.mark.slow
def test_few_effective_draws_are_noted():
    found = judged(
        torch.zeros(40), ess=torch.cat([torch.full((39,), 50.0), torch.tensor([1.1])])
    )
    assert found.finding.severity == Severity.NOTE
    assert "for 1 of 40 data (39)" in found.finding.verdict
    poor = gaps(
        TwoModes(),
        4 + 5 * torch.rand(5),
        evidence="ais",
        num_samples=100,
        steps=10,
        schedule=Schedule(2, 2),
    )
    assert poor.ess.max() <= 2
    assert poor.evidence.errors.min() > 2
    assert poor.finding.severity >= Severity.NOTE


def test_gap_without_annealing_notes_missed_modes():
    found = judged(torch.zeros(40))
    weighed = {"iwae": found.bounds["ais from the guide"]}
    cut = dataclasses.replace(found, bounds=weighed, cut="100 of 1000 draws, annealing")
    assert cut.finding.severity == Severity.NOTE
    assert "no time to anneal" in cut.finding.verdict
    assert (
        dataclasses.replace(cut, cut="annealing by 8 of 16 chains").finding.severity
        == Severity.OK
    )


@pytest.mark.slow
def test_best_guide_leaving_the_support_is_skipped():
    """x ~ U(0, θ), θ ~ Pareto(1, 2): the posterior is Pareto(m, n + 2), with m the largest datum.

    p(x) is 2 / (n + 2) m^−(n + 2).
    """

    def model(x):
        theta = pyro.sample("theta", dist.Pareto(1.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Uniform(0.0, theta), obs=x)

    def guide(x):
        pyro.sample("theta", dist.Pareto(x.max(), 2.0 + len(x)))

    x = torch.linspace(0.1, 2.5, 10)
    found = gaps(
        vilvm.Pair(model, guide), x, num_samples=10, steps=10, schedule=Schedule(2, 2)
    )
    assert found.cut == "the best guide's fit"
    assert found.amortised.mean == pytest.approx(
        math.log(2 / 12) - 12 * math.log(2.5), abs=1e-4
    )
    assert not found.is_divided
    assert "was not measured" in found.finding.verdict


class PerDatum(torch.nn.Module):
    """A guide that reads no datum: with parameters for each datum, or one pair for all."""

    def __init__(self, size):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(size))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 0.7).expand([len(x)]))


@pytest.mark.parametrize("size", [1, 12])
def test_guide_ignoring_its_data_has_no_amortisation(size):
    found = gaps(
        PerDatum(size),
        torch.randn(12),
        num_samples=100,
        steps=20,
        schedule=Schedule(4, 5, leapfrog=1),
    )
    assert not found.has_amortisation
    assert "amortisation" not in found.finding.verdict
    assert found.index.tolist() == list(range(12))


@pytest.mark.slow
def test_prior_chains_run_for_some_of_many_data():
    lvm, x = factors(diagonal=False)
    found = gaps(
        lvm,
        x,
        evidence="ais",
        num_samples=50,
        steps=5,
        schedule=Schedule(4, 5, leapfrog=1),
    )
    there = found.bounds["ais from the prior"].estimate.values.isfinite()
    assert there.sum() == 100
    assert bool(there[0] & there[-1])
    assert found.evidence.values.isfinite().all()
    assert len(found.missed.values) == 100


def test_shortened_annealing_is_never_longer():
    small = Schedule(num_chains=4, num_temperatures=5, leapfrog=1)
    assert _shorter(small) == small
    longer = Schedule(num_chains=64, num_temperatures=100, leapfrog=5)
    shorter = _shorter(longer)
    sizes = shorter.num_chains, shorter.num_temperatures, shorter.leapfrog
    assert sizes == (32, 50, 4)
