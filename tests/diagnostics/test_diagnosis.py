"""Planted faults are found, and a right model raises no alarm: the whole of the diagnostics on pairs whose worth is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal

import vilvm
import vilvm.datasets
from models.ppca import PPCA
from models.vae import VAE
from tests.diagnostics.test_collapse import Beta
from vilvm.diagnostics import Gravity, diagnose
from vilvm.evaluation import Schedule

QUICK = Schedule(num_chains=8, num_temperatures=20, leapfrog=3)


def linear(seed=0, num_data=300):
    """A linear Gaussian model under its exact posterior, and data of its own."""
    torch.manual_seed(seed)
    lvm = PPCA(8, 3).maximise(torch.randn(400, 3) @ torch.randn(3, 8) + 0.5 * torch.randn(400, 8))
    return lvm, vilvm.sample(lvm, num_data)["x"]


def gravities(found):
    return {name: result.finding.gravity for name, result in found.results.items()}


def test_a_right_model_and_an_exact_guide_raise_no_alarm():
    lvm, x = linear()
    found = diagnose(lvm, x, seed=1)
    assert found.trusted, str(found)
    assert found.gravity("model") < Gravity.WARNING
    assert set(found.results) == {
        "Pareto k̂",
        "Posterior collapse",
        "Calibration (SBC)",
        "Calibration (TARP)",
        "Posterior predictive check",
        "Prior predictive check",
        "Inference gap",
    }
    assert found.skipped["Means and standard deviations"] == "each datum has latents of its own."
    assert "history" in found.skipped["Convergence"]
    assert "Nothing was found" in found.verdict


@pytest.mark.slow
def test_alarms_of_right_models_are_as_rare_as_stated():
    """Of 30 right models, each given a false-alarm rate of 0.01, more than 4 with an alarm have a probability of 1e-5."""
    alarms = []
    for seed in range(30):
        lvm, x = linear(seed)
        found = diagnose(lvm, x, seed=seed)
        alarms += [str(f) for f in found.findings if f.gravity >= Gravity.WARNING]
    assert len(alarms) <= 4, alarms


def test_a_guide_of_half_the_scale_is_caught_by_all_that_look():
    lvm, x = linear()
    with torch.no_grad():
        lvm.log_s -= math.log(2)
    found = diagnose(lvm, x)
    grave = gravities(found)
    assert grave["Pareto k̂"] == grave["Calibration (SBC)"] == grave["Calibration (TARP)"] == Gravity.GRAVE
    assert grave["Inference gap"] >= Gravity.NOTE
    assert found.verdict.startswith("Do not trust this posterior")
    assert "too narrow" in found.results["Calibration (SBC)"].finding.verdict
    assert found.findings[0].gravity == Gravity.GRAVE
    assert [f.gravity for f in found.findings] == sorted((f.gravity for f in found.findings), reverse=True)


def test_a_collapsed_vae_is_caught():
    torch.manual_seed(0)
    data = vilvm.datasets.digits(transform=vilvm.datasets.StaticBinarisation(0))
    lvm = VAE(64, 4, encoder_hidden=(32,), decoder_hidden=(32,))
    vilvm.fit(lvm, data.train, steps=300, batch_size=270, objective=Beta(pyro.infer.Trace_ELBO(), warmup=1))
    found = diagnose(lvm, data.test, num_data=100, schedule=QUICK)
    assert gravities(found)["Posterior collapse"] == Gravity.GRAVE
    assert not found.trusted


def test_a_fit_that_is_stopped_too_early_is_caught():
    _, x = linear()
    fresh = PPCA(8, 3)
    fitted = vilvm.fit(fresh, x, steps=600)
    found = diagnose(fresh, x, history=fitted, schedule=QUICK)
    assert gravities(found)["Convergence"] == Gravity.WARNING
    assert "still improving" in found.results["Convergence"].finding.verdict
    assert not found.trusted


def test_a_wrong_likelihood_is_the_model_s_fault_and_not_the_guide_s():
    torch.manual_seed(0)
    lvm, _ = linear()
    noise = dist.StudentT(2.5).sample((300, 8)) * lvm.log_sigma.exp().item()
    x = torch.randn(300, 3) @ lvm.W.detach().T + lvm.b.detach() + noise
    found = diagnose(lvm, x)
    assert gravities(found)["Posterior predictive check"] == Gravity.WARNING
    assert found.gravity("model") == Gravity.WARNING
    assert found.trusted, str(found)
    assert "The model does not make data like these" in found.verdict


def correlated(batch):
    """Two coefficients whose covariates are all but one."""
    x, y = batch
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((beta * x).sum(-1), 0.5), obs=y)


@pytest.mark.parametrize(("auto", "trusted"), [(AutoNormal, False), (AutoMultivariateNormal, True)])
def test_mean_field_on_a_correlated_target_is_flagged_and_full_rank_is_not(auto, trusted):
    torch.manual_seed(0)
    x = torch.randn(60, 1) + 0.15 * torch.randn(60, 2)
    batch = x, x @ torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(60)
    lvm = vilvm.Pair(correlated, auto(correlated))
    elbo = pyro.infer.Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    vilvm.fit(lvm, batch, steps=3000, objective=elbo, **vilvm.training.one_cycle(0.05, 3000))
    found = diagnose(lvm, batch, schedule=QUICK)
    assert found.trusted == trusted, str(found)
    assert "Means and standard deviations" in found.results
    assert "its data share a latent" in found.skipped["Calibration (SBC)"]


def test_a_budget_that_is_spent_is_said():
    lvm, x = linear()
    found = diagnose(lvm, x, budget=1e-6)
    assert all(
        "the budget of 1e-06 s was spent" in why
        for n, why in found.skipped.items()
        if n not in ("Means and standard deviations", "Leave-one-out prediction", "Convergence")
    )
    with pytest.raises(ValueError, match="budget must be a positive number"):
        diagnose(lvm, x, budget=0)
    with pytest.raises(ValueError, match="false_alarm must be between 0 and 1"):
        diagnose(lvm, x, false_alarm=1)


def test_a_posterior_that_could_not_be_looked_at_is_not_trusted():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    found = diagnose(vilvm.Pair(model, AutoDelta(model)), torch.randn(20), schedule=QUICK)
    assert not found.trusted
    assert found.verdict.startswith("This posterior cannot be vouched for")
    assert "the guide of Pair puts latent 'mu' on one point" in found.verdict


def test_a_check_that_fails_or_has_no_time_left_vouches_for_nothing(monkeypatch):
    lvm, x = linear()

    def failing(*args, **options):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("vilvm.diagnostics.diagnosis.sbc", failing)
    found = diagnose(lvm, x, schedule=QUICK)
    assert found.unfinished == ("Calibration (SBC)",)
    assert not found.trusted
    assert "RuntimeError: out of luck" in found.verdict
    late = diagnose(lvm, x, budget=1e-6)
    assert "Inference gap" in late.unfinished
    assert not late.trusted
