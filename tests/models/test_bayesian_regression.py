"""Bayesian regression, compared with exact densities, quadrature and reference draws."""

import math

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import integrate, stats
from torch.distributions import MultivariateNormal

import vilvm
from tests.models.exact import posteriordb_or_skip
from vilvm.models.bayesian_regression import FLAT, BayesianRegression, lagged
from vilvm.training import one_cycle

POSTERIORS = ("kidiq-kidscore_momiq", "sblri-blr", "arK-arK")


def regression(num_data=30):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_data, 2, generator=generator) * torch.tensor([1.0, 3.0]) + 2
    return x, 1 + x @ torch.tensor([0.5, -1.0]) + 0.7 * torch.randn(
        num_data, generator=generator
    )


def reference(name):
    """A reference posterior of posteriordb, its batch, the model's options and scalar names."""
    found = posteriordb_or_skip(name)
    data = found.data
    if name == "arK-arK":
        return found, lagged(data["y"], data["K"]).x, {}, {n: n for n in found.draws}
    if name == "sblri-blr":
        options = {
            "intercept": False,
            "sigma_scale": 10.0,
            "sigma_prior": "half_normal",
        }
        return found, (data["X"], data["y"]), options, {n: n for n in found.draws}
    batch = data["mom_iq"][:, None], data["kid_score"]
    return (
        found,
        batch,
        {"beta_scale": FLAT},
        {"alpha": "beta[1]", "beta[1]": "beta[2]", "sigma": "sigma"},
    )


def fitted(batch, steps, **options):
    lvm = BayesianRegression.whitened(batch, **options)
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    vilvm.fit(lvm, batch, steps=steps, objective=elbo, **one_cycle(0.05, steps))
    return lvm


@pytest.mark.parametrize("num_data", [2, 30])
def test_known_noise_matches_the_joint_gaussian(num_data):
    x, y = regression(num_data)
    design = torch.cat([torch.ones(num_data, 1), x], 1).double()
    prior = torch.tensor([2.0, 3.0, 3.0]).double().square().diag()
    cov = design @ prior @ design.T + 0.49 * torch.eye(num_data).double()
    gain = prior @ design.T @ cov.inverse()
    for make in (
        BayesianRegression.whitened,
        lambda batch, **options: BayesianRegression(2, **options),
    ):
        lvm = make((x, y), alpha_scale=2.0, beta_scale=3.0, sigma=0.7)
        truth = MultivariateNormal(torch.zeros(num_data).double(), cov).log_prob(
            y.double()
        )
        torch.testing.assert_close(
            lvm.exact_log_evidence((x, y)), truth, rtol=1e-6, atol=1e-6
        )
        mean, sd = lvm.exact_moments((x, y))
        assert list(mean) == ["alpha", "beta[1]", "beta[2]"]
        torch.testing.assert_close(
            torch.stack([*mean.values()]), gain @ y.double(), rtol=1e-6, atol=1e-6
        )
        torch.testing.assert_close(
            torch.stack([*sd.values()]),
            (prior - gain @ design @ prior).diagonal().sqrt(),
            rtol=1e-6,
            atol=1e-6,
        )


@pytest.mark.parametrize("sigma_prior", ["half_cauchy", "half_normal"])
def test_unknown_noise_is_integrated_out(sigma_prior):
    x, y = regression()
    lvm = BayesianRegression(
        2, beta_scale=3.0, sigma_scale=0.4, sigma_prior=sigma_prior
    )
    known = [BayesianRegression(2, beta_scale=3.0, sigma=s) for s in (0.5, 1.0)]
    family = {"half_cauchy": stats.halfcauchy, "half_normal": stats.halfnorm}[
        sigma_prior
    ](scale=0.4)
    top = lvm.exact_log_evidence((x, y)).item()

    def integral(moment):
        def integrand(sigma):
            # a test above compares the case of known noise with the joint Gaussian
            known[0].sigma = float(sigma)
            mean, sd = (m["beta[1]"].item() for m in known[0].exact_moments((x, y)))
            joint = math.exp(
                known[0].exact_log_evidence((x, y)).item() - top
            ) * family.pdf(sigma)
            return joint * moment(sigma, mean, sd)

        return integrate.quad(integrand, 0.2, 4, epsabs=1e-9, limit=100)[0]

    assert integral(lambda *_: 1.0) == pytest.approx(1, abs=1e-5)
    mean, sd = lvm.exact_moments((x, y))
    assert mean["beta[1]"].item() == pytest.approx(
        integral(lambda s, m, d: m), rel=1e-5
    )
    assert mean["sigma"].item() == pytest.approx(integral(lambda s, m, d: s), rel=1e-5)
    second = integral(lambda s, m, d: m**2 + d**2)
    assert sd["beta[1]"].item() == pytest.approx(
        math.sqrt(second - mean["beta[1]"].item() ** 2), rel=1e-4
    )


def test_quadrature_narrows_for_many_data():
    x, y = regression(200_000)
    lvm = BayesianRegression(2)
    sd = lvm.exact_moments((x, y)).sd["sigma"].item()
    assert sd == pytest.approx(
        lvm.exact_moments((x, y)).mean["sigma"].item() / math.sqrt(2 * len(y)), rel=1e-3
    )


def test_coordinates_keep_the_prior_and_whiten_posterior():
    x, y = regression()
    lvm = BayesianRegression.whitened((x, y), beta_scale=3.0, alpha_scale=5.0).double()
    torch.testing.assert_close(
        lvm.basis @ lvm.basis.T,
        torch.tensor([25.0, 9, 9]).double().diag(),
        rtol=1e-5,
        atol=1e-4,
    )
    at_noise = BayesianRegression(
        2, beta_scale=3.0, alpha_scale=5.0, sigma=lvm.noise.item()
    )
    mean, sd = at_noise.exact_moments((x, y))
    torch.testing.assert_close(
        lvm.basis @ lvm.shift, torch.stack([*mean.values()]), rtol=1e-5, atol=1e-5
    )
    spread = (lvm.basis * lvm.spread).square().sum(1).sqrt()
    torch.testing.assert_close(
        spread, torch.stack([*sd.values()]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "guide",
    [
        "full_rank",
        pytest.param("mean_field", marks=pytest.mark.slow),
        pytest.param("low_rank", marks=pytest.mark.slow),
    ],
)
def test_importance_weights_find_the_evidence(guide):
    x, y = regression()
    lvm = fitted((x, y), 300, guide=guide)
    bounds = vilvm.evaluate(lvm, (x, y), num_samples=4000).bounds
    exact = lvm.exact_log_evidence((x, y)).item()
    assert abs(bounds["iwae"].mean - exact) < 5 * bounds["iwae"].mc_se
    assert exact - 0.3 < bounds["elbo"].mean < exact


@pytest.mark.slow
def test_raw_coordinates_are_the_same_model():
    x, y = regression()
    raw, white = (
        BayesianRegression(2, sigma=0.7),
        BayesianRegression.whitened((x, y), sigma=0.7),
    )
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    vilvm.fit(raw, (x, y), steps=250, objective=elbo, **one_cycle(0.05, 250))
    assert set(vilvm.posterior(raw, (x, y), 2)) == {"beta"}
    assert set(vilvm.posterior(white, (x, y), 2)) == {"z", "beta"}
    bounds = vilvm.evaluate(raw, (x, y), num_samples=4000).bounds
    assert (
        abs(bounds["iwae"].mean - white.exact_log_evidence((x, y)).item())
        < 5 * bounds["iwae"].mc_se
    )


def test_lagged_rows_hold_the_previous_values():
    x, y = lagged(torch.arange(6.0), 3).x
    assert y.tolist() == [3, 4, 5]
    assert x.tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    with pytest.raises(ValueError, match="order 6 needs a series of more numbers"):
        lagged(torch.arange(6.0), 6)


def test_options_are_checked():
    with pytest.raises(ValueError, match="unknown guide 'flow'; choose from"):
        BayesianRegression(2, guide="flow")
    with pytest.raises(ValueError, match="unknown sigma_prior 'gamma'"):
        BayesianRegression(2, sigma_prior="gamma")
    for wrong in (
        {"beta_scale": 0.0},
        {"sigma": 0.0},
        {"sigma": -1.0},
        {"sigma_scale": math.nan},
    ):
        with pytest.raises(
            ValueError, match=f"{next(iter(wrong))} = .* must be positive"
        ):
            BayesianRegression(2, **wrong)
    with pytest.raises(
        ValueError,
        match=r"x must have shape \(num_data, num_covariates\) and y \(num_data,\); "
        r"got \(3,\) and \(3,\)",
    ):
        BayesianRegression.whitened((torch.ones(3), torch.ones(3)))


def test_wide_prior_approximates_a_flat_one():
    _, (x, y), options, _ = reference("kidiq-kidscore_momiq")
    mean, sd = BayesianRegression(1, **options).exact_moments((x, y))
    # Under a flat prior β given σ is N(least squares, σ² (XᵀX)⁻¹), and p(σ | y) ∝ p(σ) σ^{K − N}
    # exp(−SSE / 2σ²).
    design, target = (
        np.stack([np.ones(len(x)), x[:, 0].numpy()], 1).astype(float),
        y.double().numpy(),
    )
    best, (sse,), *_ = np.linalg.lstsq(design, target, rcond=None)
    mode = math.sqrt(sse / len(y))

    def integral(power):
        def integrand(s):
            log = (2 - len(y)) * math.log(s / mode) - sse / 2 * (s**-2 - mode**-2)
            return stats.halfcauchy(scale=2.5).pdf(s) * math.exp(log) * s**power

        return integrate.quad(integrand, 0.7 * mode, 1.5 * mode, epsabs=0)[0]

    moments = [integral(power) / integral(0) for power in (1, 2)]
    flat_sd = np.sqrt(moments[1] * np.linalg.inv(design.T @ design).diagonal())
    for name, m, s in zip(("alpha", "beta[1]"), best, flat_sd, strict=True):
        assert abs(mean[name].item() - m) < 1e-3 * s
        assert sd[name].item() == pytest.approx(s, rel=1e-3)
    assert mean["sigma"].item() == pytest.approx(
        moments[0], abs=1e-3 * sd["sigma"].item()
    )


@pytest.mark.parametrize("name", POSTERIORS)
def test_exact_moments_are_those_of_the_reference_draws(name):
    found, (x, y), options, names = reference(name)
    mean, sd = BayesianRegression(x.shape[1], **options).exact_moments((x, y))
    assert set(mean) == set(names)
    for ours, theirs in names.items():
        draws = found.draws[theirs]
        error = (
            draws.mean(1).std() / len(draws) ** 0.5
        )  # of ten chains, by their spread
        assert abs(draws.mean() - mean[ours]) < 6 * error  # of nine degrees of freedom
        assert sd[ours].item() == pytest.approx(found.sd(theirs), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["full_rank", "mean_field"])
@pytest.mark.parametrize("name", POSTERIORS)
def test_svi_reaches_the_reference_draws(name, guide):
    found, batch, options, names = reference(name)
    lvm = fitted(batch, 1000, guide=guide, **options)
    drawn = lvm.scalars(vilvm.posterior(lvm, batch, 20_000))
    for ours, theirs in names.items():
        assert abs(
            drawn[ours].double().mean().item() - found.mean(theirs)
        ) < 0.1 * found.sd(theirs), ours
        assert drawn[ours].double().std().item() == pytest.approx(
            found.sd(theirs), rel=0.1
        ), ours
    gap = (
        lvm.exact_log_evidence(batch).item()
        - vilvm.evaluate(lvm, batch, num_samples=5000).bounds["elbo"].mean
    )
    assert gap < 0.1
