"""The whole diagnosis: planted faults are detected, and right models raise no alarm."""

import math
from functools import partial
from importlib import import_module
from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal

import vilvm
import vilvm.data.datasets
from tests.diagnostics.test_collapse import Beta
from tests.diagnostics.test_convergence import history, noise
from vilvm.diagnostics import Diagnosis, Finding, Severity, diagnose, gaps
from vilvm.diagnostics._session import Check
from vilvm.evaluation import Schedule
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.plots import diagnosis_figures
from vilvm.weights import find_layout

QUICK = Schedule(num_chains=8, num_temperatures=20, leapfrog=3)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Fewer steps: these tests do not need a precise best guide."""
    monkeypatch.setattr(
        import_module("vilvm.diagnostics.diagnose"), "gaps", partial(gaps, steps=80)
    )


def linear(seed=0, num_data=100):
    """A linear Gaussian model under its exact posterior, and data of its own."""
    torch.manual_seed(seed)
    lvm = PPCA(8, 3).maximise(
        torch.randn(400, 3) @ torch.randn(3, 8) + 0.5 * torch.randn(400, 8)
    )
    return lvm, vilvm.sample(lvm, num_data)["x"]


def severities(found):
    return {name: result.finding.severity for name, result in found.results.items()}


def test_right_model_with_exact_guide_raises_no_alarm():
    lvm, x = linear()
    found = diagnose(lvm, x, schedule=QUICK, seed=1, budget=600)
    assert found.trusted, str(found)
    assert found.severity("model") < Severity.WARNING
    assert set(found.results) == {
        "Pareto k̂",
        "Rate",
        "Means and standard deviations",
        "Posterior collapse",
        "Calibration (SBC)",
        "Calibration (TARP)",
        "Posterior predictive check",
        "Prior predictive check",
        "Inference gap",
    }
    assert (
        found.skipped["Leave-one-out prediction"]
        == "each datum has latents of its own."
    )
    assert "history" in found.skipped["Convergence"]
    assert "No diagnostic found evidence" in found.verdict


def test_verdict_separates_posterior_from_model():
    def verdict(*findings):
        found = tuple(
            Finding(name, severity, "", "", about=about)
            for name, severity, about in findings
        )
        return Diagnosis(found, {}, {}, torch.arange(1), 0.0).verdict

    posterior = ("Posterior predictive check", Severity.WARNING, "model")
    prior = ("Prior predictive check", Severity.WARNING, "model")
    collapsed = ("Posterior collapse", Severity.CRITICAL, "model")
    bad = ("Pareto k̂", Severity.CRITICAL, "posterior")
    unlike, unused = (
        "The model does not generate data like these.",
        "The model makes little use of its latents.",
    )
    assert verdict(posterior, prior, collapsed).endswith(
        f"against this posterior. {unlike} {unused}"
    )
    assert verdict(bad, prior, posterior) == f"Do not trust this posterior. {unlike}"
    assert verdict(bad, posterior).endswith("the guide or the model is wrong.")
    assert verdict(("Posterior collapse", Severity.NOTE, "model")).endswith(
        "against this posterior."
    )


LEVELS = list(Severity)
MODEL_NAMES = (
    "Posterior predictive check",
    "Prior predictive check",
    "Posterior collapse",
    "Leave-one-out prediction",
    "Another",
)


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("unfinished", [(), ("Rate",)])
def test_verdict_and_badges_agree(name, unfinished):
    for posterior, model in product([None, *LEVELS], [None, *LEVELS]):
        findings = [
            Finding(f, severity, "", "", about=about)
            for f, severity, about in (
                ("Pareto k̂", posterior, "posterior"),
                (name, model, "model"),
            )
            if severity is not None
        ]
        found = Diagnosis(
            tuple(findings),
            {},
            dict.fromkeys(unfinished, "no time."),
            torch.arange(1),
            0.0,
            unfinished,
        )
        of_posterior, of_model = found.judgements
        objects = [f for f in findings if f.severity >= Severity.WARNING]
        assert of_posterior.objects == any(f.about == "posterior" for f in objects)
        assert of_model.objects == any(f.about == "model" for f in objects)
        assert found.verdict.startswith(of_posterior.sentence)
        assert ("Do not trust" in found.verdict) == of_posterior.objects
        assert found.trusted == (not of_posterior.objects and not unfinished)
        assert (of_posterior.badge == "NOT FINISHED") == (
            bool(unfinished) and not of_posterior.objects
        )
        assert ("No diagnostic" in of_posterior.sentence) == found.trusted
        assert (of_model.sentence in found.verdict) == of_model.objects
        assert ("No diagnostic" in of_model.sentence) == (not of_model.objects)
        assert (of_model.badge == "NOT JUDGED") == (model is None)


def scaled(of_model, size, subsample=None):
    """z ~ N(0, 1), x | z ~ N(z, 1), with the model's sites scaled by these factors."""

    def model(x):
        with pyro.plate("data", size, subsample_size=subsample):
            for_z, for_x = of_model
            with poutine.scale(scale=for_z):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=for_x):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with (
            pyro.plate("data", size, subsample_size=subsample),
            poutine.scale(scale=of_model[0]),
        ):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    return vilvm.Pair(model, guide)


@pytest.mark.parametrize(
    ("of_model", "size", "subsample", "expected"),
    [
        ((1.0, 1.0), 20, None, {}),
        ((0.05, 0.05), 20, None, {}),  # a mean instead of a sum
        ((1.0, 1.0), 60, 20, {}),  # the factor of a subsampled plate
        ((1.0, 0.1), 20, None, {"z": 1.0, "x": 0.1}),
        ((0.5, 1.0), 60, 20, {"z": 0.5, "x": 1.0}),
        ((1.0, torch.full((20,), 2.0)), 20, None, {"z": 1.0, "x": 2.0}),
    ],
)
def test_unequal_scales_are_reported_as_tempered(of_model, size, subsample, expected):
    x = torch.randn(20, generator=torch.Generator().manual_seed(0))
    assert find_layout(scaled(of_model, size, subsample), x).tempered == pytest.approx(
        expected
    )


def test_verdict_names_unequal_scales():
    lvm, x = scaled((1.0, 0.1), 20), torch.randn(20)
    found = diagnose(lvm, x, num_data=20, schedule=QUICK, budget=1)
    assert "without its poutine.scale ('z' by 1, 'x' by 0.1)" in found.verdict


@pytest.mark.slow
def test_half_scale_guide_is_detected_by_all_checks():
    lvm, x = linear()
    with torch.no_grad():
        lvm.log_s -= math.log(2)
    found = diagnose(lvm, x, schedule=QUICK, budget=600)
    grave = severities(found)
    assert (
        grave["Pareto k̂"]
        == grave["Calibration (SBC)"]
        == grave["Calibration (TARP)"]
        == Severity.CRITICAL
    )
    assert grave["Inference gap"] >= Severity.NOTE
    assert found.verdict.startswith("Do not trust this posterior")
    assert "too narrow" in found.results["Calibration (SBC)"].finding.verdict
    assert found.findings[0].severity == Severity.CRITICAL
    assert [f.severity for f in found.findings] == sorted(
        (f.severity for f in found.findings), reverse=True
    )


@pytest.mark.slow
def test_collapsed_vae_is_detected():
    torch.manual_seed(0)
    data = vilvm.data.datasets.digits(transform=vilvm.data.StaticBinarisation(0))
    lvm = VAE(64, 4, encoder_hidden=(32,), decoder_hidden=(32,))
    vilvm.fit(
        lvm,
        data.train,
        steps=300,
        batch_size=270,
        objective=Beta(pyro.infer.Trace_ELBO(), warmup=1),
    )
    found = diagnose(lvm, data.test, num_data=50, schedule=QUICK)
    assert (
        severities(found)["Posterior collapse"]
        == found.severity("model")
        == Severity.CRITICAL
    )
    assert "The model makes little use of its latents." in found.verdict


@pytest.mark.slow
def test_fit_stopped_too_early_is_detected():
    _, x = linear()
    fresh = PPCA(8, 3)
    fitted = vilvm.fit(fresh, x, steps=600)
    found = diagnose(fresh, x, history=fitted, schedule=QUICK)
    assert severities(found)["Convergence"] == Severity.WARNING
    assert "still improving" in found.results["Convergence"].finding.verdict
    assert not found.trusted


@pytest.mark.slow
def test_wrong_likelihood_blames_model_not_guide():
    torch.manual_seed(0)
    lvm, _ = linear()
    noise = dist.StudentT(2.5).sample((100, 8)) * lvm.log_sigma.exp().item()
    x = torch.randn(100, 3) @ lvm.W.detach().T + lvm.b.detach() + noise
    found = diagnose(lvm, x)
    assert severities(found)["Posterior predictive check"] == Severity.WARNING
    assert found.severity("model") == Severity.WARNING
    assert found.trusted, str(found)
    assert "The model does not generate data like these" in found.verdict


class Correlated(torch.nn.Module):
    """Two coefficients with nearly equal covariates.

    The guide is the exact posterior or the nearest mean-field guide.
    """

    def __init__(self, full):
        super().__init__()
        self.full = full

    def model(self, batch):
        x, y = batch
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal((beta * x).sum(-1), 0.5), obs=y)

    def guide(self, batch):
        x, y = batch
        precision = torch.eye(2) / 9 + x.T @ x / 0.25
        mean = torch.linalg.solve(precision, x.T @ y / 0.25)
        if self.full:
            pyro.sample(
                "beta", dist.MultivariateNormal(mean, precision_matrix=precision)
            )
        else:  # Var q_i = 1/Λ_ii
            pyro.sample(
                "beta", dist.Normal(mean, precision.diagonal().rsqrt()).to_event(1)
            )


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_mean_field_is_flagged_full_rank_is_not(full):
    torch.manual_seed(0)
    x = torch.randn(60, 1) + 0.15 * torch.randn(60, 2)
    batch = x, x @ torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(60)
    found = diagnose(Correlated(full), batch, schedule=QUICK, budget=600)
    assert found.trusted == full, str(found)
    assert "Means and standard deviations" in found.results
    assert "its data share a latent" in found.skipped["Calibration (SBC)"]


def regression(seed):
    """A model whose data share latents, under its exact posterior, and data of its own."""
    torch.manual_seed(seed)
    x = torch.randn(60, 2)
    return Correlated(full=True), (
        x,
        (x * 3 * torch.randn(2)).sum(-1) + 0.5 * torch.randn(60),
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [linear, regression])
def test_false_alarms_are_as_rare_as_stated(make):
    """Of 5 right models, more than 2 raise an alarm with probability 1e-5.

    Every check runs, at a joint false-alarm rate of 0.01.
    """
    alarmed = []
    for seed in range(5):
        lvm, x = make(seed)
        found = diagnose(
            lvm,
            x,
            history=history(0.1 * noise(40, 0.5, 1, seed)[0]),
            schedule=QUICK,
            seed=seed,
        )
        assert not found.unfinished, found.skipped
        assert "Convergence" in found.results
        if max(found.severity(), found.severity("model")) >= Severity.WARNING:
            alarmed.append(str(found))
    assert len(alarmed) <= 2, alarmed


def test_spent_budget_is_reported():
    lvm, x = linear()
    found = diagnose(lvm, x, budget=1e-6)
    assert all(
        "the budget of 1e-06 s was spent" in why
        for n, why in found.skipped.items()
        if n not in ("Leave-one-out prediction", "Convergence")
    )
    assert "Inference gap" in found.unfinished
    assert not found.trusted
    with pytest.raises(ValueError, match="budget must be a positive number"):
        diagnose(lvm, x, budget=0)
    with pytest.raises(ValueError, match="false_alarm must be between 0 and 1"):
        diagnose(lvm, x, false_alarm=1)


def test_unexamined_posterior_is_not_trusted():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    found = diagnose(
        vilvm.Pair(model, AutoDelta(model)), torch.randn(20), schedule=QUICK
    )
    assert not found.trusted
    assert found.verdict.startswith("This posterior is not fully examined")
    assert "the guide of Pair puts latent 'mu' on one point" in found.verdict


def test_failing_check_leaves_other_checks_running(
    monkeypatch,
):
    class Broken:
        @property
        def finding(self):
            raise ValueError("no words for it")

    def failing(*args, **options):
        raise RuntimeError("out of luck")

    lvm, x = linear()
    monkeypatch.setattr(import_module("vilvm.diagnostics.diagnose"), "sbc", failing)
    monkeypatch.setattr(
        import_module("vilvm.diagnostics.diagnose"),
        "gaps",
        lambda *args, **options: Broken(),
    )
    found = diagnose(lvm, x, num_data=50)
    assert found.unfinished == ("Calibration (SBC)", "Inference gap")
    assert not found.trusted
    assert "RuntimeError: out of luck" in found.verdict
    assert found.skipped["Inference gap"] == "no words for it"
    assert "Inference gap" not in found.results
    assert "Calibration (TARP)" in found.results


class Marked(PPCA):
    """The guide is the posterior, except for data that begin with `mark`."""

    mark = 0.0

    def guide(self, x):
        with pyro.plate("data", len(x)):
            bad = (x[:, :1] == self.mark).float()
            z = (x - self.b) @ self.V.T + 3 * bad
            pyro.sample(
                "z", dist.Normal(z, self.log_s.exp() * (1 - 0.9 * bad)).to_event(1)
            )


@pytest.mark.slow
def test_worst_data_are_named_by_full_index():
    lvm, x = linear(num_data=600)
    index = diagnose(lvm, x, num_data=50, budget=1e-6).index
    bad = int(index[-1])
    assert bad > 50
    lvm.__class__ = Marked
    lvm.mark = x[bad, 0].item()
    found = diagnose(lvm, x, num_data=50, budget=600)
    assert torch.equal(found.index, index)
    assert found.num_data == 50
    for name in ("Pareto k̂", "Inference gap"):
        assert found.results[name].worst(1)[0][0] == bad, name
    assert f"(worst data: {bad})" in found.results["Pareto k̂"].finding.verdict
    assert (
        f"of datum {bad})"
        in found.results["Means and standard deviations"].finding.verdict
    )
    dots = (
        diagnosis_figures(found.results)["Pareto k̂"]
        .axes[0]
        .collections[1]
        .get_offsets()
    )
    assert dots[:, 0].tolist() == [bad]


def independent(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.slow
def test_per_datum_guide_is_diagnosed_on_all_data():
    x = torch.randn(20) * 2**0.5
    lvm = vilvm.Pair(independent, AutoNormal(independent, init_scale=0.5**0.5))
    vilvm.fit(lvm, x, steps=1)
    with torch.no_grad():  # the exact posterior
        lvm.guide.locs.z.copy_(x / 2)
    found = diagnose(lvm, x, num_data=15, schedule=QUICK)
    assert found.num_data == 20
    assert "vsbc" in found.skipped["Calibration (SBC)"]
    assert "Means and standard deviations" in found.results
    assert found.trusted, str(found)
    with torch.no_grad():
        lvm.guide.locs.z[7] += 2
    assert not diagnose(lvm, x, num_data=15, schedule=QUICK).trusted


class Widths(torch.nn.Module):
    """x ~ N(z + z', 1) in every component; the model reads the width of a datum from the batch."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x",
                dist.Normal(z.sum(-1, keepdim=True), 1.0)
                .expand([*z.shape[:-1], x.shape[-1]])
                .to_event(1),
                obs=x,
            )

    def guide(self, x):
        n = x.shape[-1]
        precision = torch.eye(2) + n * torch.ones(2, 2)
        mean = x.sum(-1, keepdim=True) * torch.ones(2) / (2 * n + 1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean, precision_matrix=precision))


@pytest.mark.slow
def test_model_reading_batch_width_is_calibrated():
    torch.manual_seed(0)
    x = torch.randn(200, 2).sum(-1, keepdim=True) + torch.randn(200, 4)
    found = diagnose(Widths(), x, num_data=50, schedule=QUICK)
    assert "Calibration (SBC)" in found.results, found.skipped
    assert found.trusted, str(found)


@pytest.mark.slow
def test_false_alarm_rate_is_divided_among_tests():
    lvm, x = linear()
    fitted = vilvm.fit(lvm, x, steps=1)
    found = diagnose(
        lvm, x, num_data=50, history=fitted, schedule=QUICK, false_alarm=0.07
    )
    rates = {
        name: result.false_alarm
        for name, result in found.results.items()
        if hasattr(result, "false_alarm")
    }
    sides = {name: 2 if name == "Convergence" else 1 for name in rates}
    assert len(rates) == 9
    assert sum(sides[name] * rate for name, rate in rates.items()) == pytest.approx(
        0.07
    )


@pytest.mark.parametrize("transform", [None, vilvm.data.DynamicBinarisation()])
def test_only_chosen_data_are_read_from_disk(transform, tmp_path, monkeypatch):
    np.save(
        tmp_path / "x.npy", np.random.default_rng(0).random((5000, 6), dtype=np.float32)
    )
    data = vilvm.data.datasets.on_disk(tmp_path / "x.npy", transform=transform)
    read, seen, real = [], [], type(data.x).__getitem__

    def rows(self, index):
        found = real(self, index)
        read.append(len(found))
        return found

    def none(*_):
        raise vilvm.NotApplicable("nothing is looked for.")

    def checks(prepared, *rest):
        seen.append(prepared.data)
        return [Check("Nothing", none)]

    monkeypatch.setattr(type(data.x), "__getitem__", rows)
    monkeypatch.setattr(import_module("vilvm.diagnostics.diagnose"), "_checks", checks)
    lvm = PPCA(6, 2) if transform is None else VAE(6, 2)
    found = diagnose(lvm, data, num_data=80, budget=1e6, progress=False)
    assert (found.num_data, len(seen[0])) == (80, 80)
    assert sum(read) <= 2 * 80 + 4 * 50  # and batches that determine the layout
    expected = real(data.x, found.index)
    if transform is None:
        assert torch.equal(seen[0].x, expected)
    else:
        assert bool(((seen[0].x == 0) | (seen[0].x == 1)).all())
        assert bool((seen[0].x <= expected.ceil()).all())
    assert int(found.index.max()) > 4000  # chosen from all data
