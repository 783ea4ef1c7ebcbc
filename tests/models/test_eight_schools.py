"""Eight schools: the exact table, an independent quadrature, and the results of each guide."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import integrate, stats

import vilvm
from tests.models.exact import posteriordb_or_skip
from vilvm.diagnostics import pareto_k
from vilvm.evaluation import Schedule, ais
from vilvm.models.eight_schools import EightSchools, eight_schools
from vilvm.training import one_cycle

BATCH = eight_schools().x
WIDE = {"mu_scale": 50.0, "tau_scale": 25.0, "tau_prior": "half_normal"}


@pytest.mark.parametrize(
    ("prior", "evidence", "mu", "tau"),
    [({}, -31.31135, 4.39682, 3.59771), (WIDE, -33.42568, 7.83454, 6.08024)],
)
def test_the_exact_table(prior, evidence, mu, tau):
    for centred in (True, False):
        lvm = EightSchools(centred, **prior)
        assert lvm.exact_log_evidence(BATCH).shape == ()
        assert lvm.exact_log_evidence(BATCH).item() == pytest.approx(evidence, abs=1e-5)
        mean = lvm.exact_moments(BATCH).mean
        assert (mean["mu"].item(), mean["tau"].item()) == pytest.approx(
            (mu, tau), abs=1e-5
        )


@pytest.mark.parametrize(
    "prior",
    [
        pytest.param({"mu_scale": 2.0, "tau_scale": 0.3}, marks=pytest.mark.slow),
        {"mu_scale": 30.0, "tau_scale": 8.0, "tau_prior": "half_normal"},
    ],
)
def test_evidence_and_moments_match_the_joint_gaussian(prior):
    # μ and θ in one Gaussian, conditioned on y; τ by an adaptive rule instead of fixed nodes.
    y, sigma = (t.double().numpy()[:5] for t in BATCH)
    s, family = (
        prior["mu_scale"],
        stats.halfnorm if "tau_prior" in prior else stats.halfcauchy,
    )

    def integral(moment):
        def integrand(tau):
            p = family(scale=prior["tau_scale"]).pdf(tau)
            cov = s**2 + tau**2 * np.eye(5)  # of θ
            gain = np.linalg.inv(cov + np.diag(sigma**2))
            likelihood = stats.multivariate_normal(
                np.zeros(5), cov + np.diag(sigma**2)
            ).pdf(y)
            mu, theta = s**2 * np.ones(5) @ gain @ y, cov @ gain @ y
            var = (
                s**2 - s**4 * np.ones(5) @ gain @ np.ones(5),
                (cov - cov @ gain @ cov)[1, 1],
            )
            return p * likelihood * moment(tau, mu, theta[1], *var) * 1e8

        return (
            integrate.quad(integrand, 0, 10, epsabs=0, limit=200)[0]
            + integrate.quad(integrand, 10, np.inf, epsabs=0)[0]
        )

    evidence = integral(lambda *_: 1.0)
    lvm = EightSchools(**prior)
    batch = tuple(t[:5] for t in BATCH)
    assert lvm.exact_log_evidence(batch).item() == pytest.approx(
        math.log(evidence) - 8 * math.log(10), abs=1e-6
    )
    mean, sd = lvm.exact_moments(batch)
    for i, name in enumerate(("tau", "mu", "theta[2]")):
        first = integral(lambda *a, i=i: a[i]) / evidence
        second = integral(lambda *a, i=i: a[i] ** 2 + (a[i + 2] if i else 0)) / evidence
        assert mean[name].item() == pytest.approx(first, rel=1e-5)
        assert sd[name].item() == pytest.approx(math.sqrt(second - first**2), rel=1e-5)


@pytest.mark.parametrize("guide", ["mean_field", "full_rank", "low_rank", "flow"])
def test_every_guide_keeps_the_contract(guide):
    lvm = EightSchools(centred=False, guide=guide)
    vilvm.fit(lvm, eight_schools(), steps=2)
    weights = vilvm.log_weights(lvm, BATCH, 4)
    assert weights.log_weight.shape == (4,)
    assert weights.log_likelihood.shape == (4, 8)
    drawn = lvm.scalars(vilvm.posterior(lvm, BATCH, 3))
    assert list(drawn) == list(lvm.exact_moments(BATCH).mean)
    assert all(v.shape == (3,) for v in drawn.values())
    fresh = EightSchools(centred=False, guide=guide)
    vilvm.log_weights(
        fresh, BATCH, 1
    )  # an autoguide creates its parameters in its first call
    fresh.load_state_dict(lvm.state_dict())
    torch.manual_seed(1)
    again = vilvm.log_weights(fresh, BATCH, 4).log_weight
    torch.manual_seed(1)
    torch.testing.assert_close(vilvm.log_weights(lvm, BATCH, 4).log_weight, again)


def test_both_parametrisations_are_one_model():
    centred, other = EightSchools(True), EightSchools(False)
    n = 40_000
    draws = [vilvm.sample(lvm, n, like=BATCH) for lvm in (centred, other)]
    first, second = (
        lvm.scalars(d)["theta[3]"]
        for lvm, d in zip((centred, other), draws, strict=True)
    )
    # τ has no mean, so θ is compared in ranks.
    assert stats.ks_2samp(first.numpy(), second.numpy()).pvalue > 1e-6


def test_options_are_checked():
    with pytest.raises(ValueError, match="unknown guide 'laplace'; choose from"):
        EightSchools(guide="laplace")
    with pytest.raises(ValueError, match="unknown tau_prior 'gamma'"):
        EightSchools(tau_prior="gamma")
    with pytest.raises(ValueError, match=r"must be positive; got 5\.0 and 0"):
        EightSchools(tau_scale=0)


def fitted(centred, guide, *, steps, lr, particles, seed=0):
    lvm = EightSchools(centred, guide)
    elbo = Trace_ELBO(
        num_particles=particles, vectorize_particles=True, max_plate_nesting=1
    )
    vilvm.fit(
        lvm,
        eight_schools(),
        steps=steps,
        objective=elbo,
        seed=seed,
        **one_cycle(lr, steps),
    )
    return lvm


@cache
def mean_field(centred, seed):
    return fitted(centred, "mean_field", steps=2000, lr=0.1, particles=8, seed=seed)


@cache
def errors(guide, steps, lr, particles):
    """By scalar: (mean − exact mean) / exact sd, and sd / exact sd; and the bounds."""
    lvm = fitted(False, guide, steps=steps, lr=lr, particles=particles)
    exact = lvm.exact_moments(BATCH)
    drawn = lvm.scalars(vilvm.posterior(lvm, BATCH, 100_000))
    found = {
        n: (
            ((v.mean() - exact.mean[n]) / exact.sd[n]).item(),
            (v.std() / exact.sd[n]).item(),
        )
        for n, v in drawn.items()
    }
    return found, vilvm.evaluate(lvm, BATCH, num_samples=20_000).bounds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("centred", "low", "high"), [(True, -33.9, -33.1), (False, -31.75, -31.45)]
)
def test_mean_field_bounds_are_those_of_the_table(centred, low, high):
    lvm = mean_field(centred, 0)
    elbo = vilvm.evaluate(lvm, BATCH, num_samples=20_000).bounds["elbo"]
    assert low < elbo.mean < high
    assert elbo.mean < lvm.exact_log_evidence(BATCH).item()


@pytest.mark.slow
def test_a_flow_reaches_every_marginal():
    found, bounds = errors("flow", 4000, 0.01, 32)
    assert all(abs(mean) < 0.1 and abs(sd - 1) < 0.1 for mean, sd in found.values()), (
        found
    )
    assert bounds["elbo"].mean == pytest.approx(-31.31135, abs=0.06)


@pytest.mark.slow
def test_gaussian_guide_matches_all_marginals_except_tau():
    found, bounds = errors("full_rank", 2000, 0.05, 16)
    tau = found.pop("tau")
    assert all(abs(mean) < 0.1 and abs(sd - 1) < 0.1 for mean, sd in found.values()), (
        found
    )
    assert tau[0] < -0.1  # log τ is skewed, towards 0
    assert tau[1] < 0.9
    assert -31.7 < bounds["elbo"].mean < -31.4


def test_exact_moments_are_those_of_the_reference_draws():
    reference = posteriordb_or_skip("eight_schools-eight_schools_noncentered")
    torch.testing.assert_close((reference.data["y"], reference.data["sigma"]), BATCH)
    mean, sd = EightSchools().exact_moments(BATCH)
    for name, draws in reference.draws.items():
        error = (
            draws.mean(1).std() / len(draws) ** 0.5
        )  # of ten chains, by their spread
        assert (
            abs(draws.mean() - mean[name]) < 6 * error + 1e-6
        )  # of nine degrees of freedom
        assert reference.sd(name) == pytest.approx(sd[name].item(), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "exact"),
    [({}, -31.31135), (WIDE, -33.42568)],
)
def test_annealing_finds_the_evidence_of_the_table(options, exact):
    lvm = EightSchools(centred=False, **options)
    found = ais(
        lvm,
        BATCH,
        Schedule(num_chains=500, num_temperatures=500, leapfrog=4, base="prior"),
    )
    assert abs(found.bound.mean - exact) < 3 * found.bound.mc_se
    assert abs(found.bound.mean - exact) < 0.05
    assert found.bound.mc_se < 0.03


@pytest.mark.slow
def test_pareto_k_distinguishes_the_parametrisations():
    """The bands and the order of the table, three seeds; k̂ moves by ±0.15 from seed to seed."""
    k = {
        centred: [
            pareto_k(mean_field(centred, seed), BATCH, 20_000, seed=seed).k.item()
            for seed in range(3)
        ]
        for centred in (True, False)
    }
    assert 0.8 - 0.15 < sum(k[True]) / 3 < 1.0 + 0.15
    assert 0.55 - 0.15 < sum(k[False]) / 3 < 0.75 + 0.15
    assert all(a > b for a, b in zip(k[True], k[False], strict=True)), k
