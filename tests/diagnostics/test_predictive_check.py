"""Predictive checks: right models raise no alarm, planted faults of the likelihood do."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import binom

import vilvm
from vilvm.diagnostics.finding import Severity
from vilvm.diagnostics.predictive_check import (
    PredictiveCheck,
    default_statistics,
    predictive_check,
)
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.weights import observed, posterior, replicate
from vilvm.wrappers.partly_observed import partly_observed

ALARM = Severity.WARNING


class Normal(torch.nn.Module):
    """y ~ N(m, 1), with a shared m ~ N(0, 1).

    The guide is the exact posterior N(Σy / (N + 1), 1 / (N + 1)).
    """

    def model(self, y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    def guide(self, y):
        pyro.sample("m", dist.Normal(y.sum() / (len(y) + 1), 1 / math.sqrt(len(y) + 1)))


class Counts(torch.nn.Module):
    """y ~ Poisson(r), with a shared r ~ Gamma(1, 1).

    The guide is the exact posterior Gamma(1 + Σy, 1 + N).
    """

    def model(self, y):
        r = pyro.sample("r", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(r), obs=y)

    def guide(self, y):
        pyro.sample("r", dist.Gamma(1 + y.sum(), 1.0 + len(y)))


def ppca_data(noise):
    torch.manual_seed(2)
    return torch.randn(400, 2) @ torch.randn(2, 6) * 2 + noise((400, 6))


def alarms(lvm, data, **options):
    found = [
        predictive_check(lvm, x, seed=seed, **options) for seed, x in enumerate(data)
    ]
    return sum(check.finding.severity >= ALARM for check in found)


def test_prior_check_false_alarms_are_as_stated():
    # The data are exchangeable with the replicates, so the rate is exact. A rate of 10 % is
    # measured more precisely than 1 %.
    data = [vilvm.sample(Normal(), 1, like=torch.zeros(40))["y"][0] for _ in range(20)]
    count = alarms(Normal(), data, kind="prior", num_draws=100, false_alarm=0.1)
    assert binom.ppf(1e-4, 20, 0.1) <= count <= binom.isf(1e-4, 20, 0.1)
    assert (
        alarms(Normal(), [x + 30 for x in data[:3]], kind="prior", num_draws=100) == 3
    )


@pytest.mark.slow
def test_right_model_passes_posterior_check():
    data = [vilvm.sample(Counts(), 1, like=torch.zeros(60))["y"][0] for _ in range(30)]
    # at most twice the rate: Meng, 1994
    assert alarms(Counts(), data, num_draws=100) <= binom.isf(1e-4, 30, 0.02)


def test_overdispersed_counts_are_detected():
    data = [
        dist.NegativeBinomial(1.0, torch.tensor(0.8)).sample((200,)) for _ in range(3)
    ]
    checks = [predictive_check(Counts(), y) for y in data]
    assert all(check.finding.severity is ALARM for check in checks)
    assert all(check.adjusted["sd"] < 0.01 for check in checks)
    assert "sd is" in checks[0].finding.verdict


def test_heavy_tails_are_detected_and_gaussian_ones_pass():
    right, wrong = ppca_data(torch.randn), ppca_data(dist.StudentT(2.5).sample)
    assert (
        predictive_check(PPCA(6, 2).maximise(right), right).finding.severity
        is Severity.OK
    )
    check = predictive_check(PPCA(6, 2).maximise(wrong), wrong)
    assert check.finding.severity is ALARM
    assert check.adjusted["kurtosis"].min() < 0.01
    assert "heavier" in check.finding.advice


def test_dependence_of_binary_data_is_detected():
    lvm = VAE(data_dim=12, latent_dim=2)
    with torch.no_grad():
        for p in lvm.parameters():
            # a decoder that says ½ throughout, of which the guide knows the posterior: the prior
            p.zero_()
    independent = (torch.rand(300, 12) < 0.5).float()
    copied = independent[:, ::2].repeat_interleave(2, 1)
    assert predictive_check(lvm, independent).finding.severity is Severity.OK
    check = predictive_check(lvm, copied)
    assert set(check.observed) == {"mean", "sd of row means", "neighbours"}
    assert check.adjusted["neighbours"] < 0.01


SCALES = torch.logspace(-3, 3, 9)


class Table(torch.nn.Module):
    """Nine columns of very different units, x_c ~ N(0, s_c²)."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = 0 * z.unsqueeze(-1) * SCALES
            pyro.sample("x", dist.Normal(loc, SCALES).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))


def test_one_skewed_column_of_small_unit_is_found():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 9, generator=generator) * SCALES
    right = predictive_check(Table(), x, num_draws=400)
    assert right.finding.severity is Severity.OK
    assert right.observed["skewness"].shape == (9,)
    assert right.observed["correlation"].shape == (36,)
    assert right.num_statistics == 7 * 9 + 36
    u = -torch.rand(300, generator=generator).log()  # exponential
    x[:, 2] = (u - 1) * SCALES[2]
    names = [f"gene {i}" for i in range(9)]
    check = predictive_check(Table(), x, num_draws=400, columns={"x": names})
    assert check.finding.severity is ALARM
    assert "skewness of gene 2 is" in check.finding.verdict
    assert int(check.adjusted["skewness"].argmin()) == 2
    pooled = {"skewness": lambda x: ((x - x.mean()) / x.std()).pow(3).mean()}
    assert predictive_check(Table(), x, pooled).finding.severity is Severity.OK


def test_dependent_columns_are_named():
    x = torch.randn(300, 9, generator=torch.Generator().manual_seed(0))
    x[:, 7] = 0.7 * x[:, 7] + 0.7 * x[:, 1]
    check = predictive_check(Table(), x * SCALES)
    assert "correlation of column 1 and column 7 is" in check.finding.verdict


@pytest.mark.slow
def test_false_alarms_of_columns_are_as_stated():
    data = [
        torch.randn(60, 9, generator=torch.Generator().manual_seed(i)) * SCALES
        for i in range(40)
    ]
    options = {"kind": "prior", "num_draws": 100, "false_alarm": 0.1}
    count = alarms(Table(), data, **options)
    assert binom.ppf(1e-4, 40, 0.1) <= count <= binom.isf(1e-4, 40, 0.1)


def test_columns_of_images_stay_pooled_and_wrong_names_are_refused():
    assert list(default_statistics(torch.randn(9, 13)))[-1] == "neighbours"
    assert default_statistics(torch.randn(9, 13))["mean"](torch.ones(9, 13)).dim() == 0
    named = default_statistics(torch.randn(9, 13), is_named=True)
    assert named["mean"](torch.ones(9, 13)).shape == (13,)
    with pytest.raises(ValueError, match=r"names 2 columns of 'x'.*\(20, 6\)"):
        predictive_check(PPCA(6, 2), torch.randn(20, 6), columns={"x": ["a", "b"]})


def test_each_component_has_its_p_value():
    replicated = torch.stack([torch.arange(199.0), torch.arange(199.0)], 1).double()
    check = PredictiveCheck(
        {"T": torch.tensor([300.0, 99.0]).double()}, {"T": replicated}, "prior", 0.01
    )
    assert check.p_values["T"].tolist() == [2 / 200, 1.0]
    assert check.adjusted["T"].shape == (2,)
    assert check.adjusted["T"][0] == 1 / 200
    assert "T[0]" in check.finding.verdict


def test_replicates_given_latents_follow_the_likelihood():
    x = torch.randn(50, 6)
    lvm = PPCA(6, 2)
    z = posterior(lvm, x, 1)["z"]
    rep = replicate(lvm, {"z": z.expand(4000, -1, -1)})["x"]
    assert rep.shape == (4000, 50, 6)
    mean, sd = vilvm.predict(lvm, {"z": z[0]})["x"], lvm.log_sigma.exp().item()
    scores = (rep.mean(0) - mean) / (sd / math.sqrt(4000))
    assert scores.abs().max() < 5.5  # 300 scores
    assert abs(rep.var(0).mean().item() / sd**2 - 1) < 5 * math.sqrt(2 / 4000 / 300)


def test_nested_plates_and_several_sites_are_replicated():
    def model(batch):
        y, n = batch
        top = pyro.sample("top", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(y), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("n", dist.Normal(10 * z, 0.01), obs=n)
            with pyro.plate("parts", y.shape[1], dim=-1):
                pyro.sample("y", dist.Normal(z + 100 * top[..., 0], 0.01), obs=y)

    def guide(batch):
        pyro.sample("top", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(batch[0]), dim=-2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    lvm, batch = vilvm.Pair(model, guide), (torch.randn(5, 4), torch.randn(5, 1))
    seen = observed(lvm, batch)
    torch.testing.assert_close(seen["y"], batch[0])
    torch.testing.assert_close(seen["n"], batch[1][:, 0])
    z, top = torch.randn(7, 5), torch.randn(7, 3)
    rep = replicate(lvm, {"z": z, "top": top}, like=batch)
    torch.testing.assert_close(rep["n"], 10 * z, atol=0.07, rtol=0)
    torch.testing.assert_close(
        rep["y"],
        (z + 100 * top[:, :1]).unsqueeze(-1).expand(7, 5, 4),
        atol=0.07,
        rtol=0,
    )
    assert {"y: mean", "n: mean"} <= set(
        predictive_check(lvm, batch, num_draws=100).observed
    )


def test_batches_are_joined_and_seeds_reproduce():
    x = ppca_data(torch.randn)
    lvm, first = (
        PPCA(6, 2).maximise(x),
        {"first": lambda x: x[0], "last": lambda x: x[-1]},
    )
    a, b = (predictive_check(lvm, x, first, seed=4, batch_size=150) for _ in range(2))
    assert torch.equal(a.observed["last"], x[-1].double())
    assert torch.equal(a.replicated["last"], b.replicated["last"])
    assert a.finding.severity is Severity.OK


def test_models_that_cannot_be_checked_are_refused():
    x = torch.randn(20, 6)
    lvm = PPCA(6, 2)
    with pytest.raises(ValueError, match="kind"):
        predictive_check(lvm, x, kind="both")
    with pytest.raises(ValueError, match="num_draws"):
        predictive_check(lvm, x, num_draws=20)
    with pytest.raises(ValueError, match="not finite"):
        predictive_check(lvm, x, {"log": lambda x: x.min().log()})
    with pytest.raises(vilvm.lvm.ContractError, match="in part"):
        predictive_check(partly_observed(lvm, torch.arange(6) < 3), x)
    with pytest.raises(
        vilvm.lvm.ContractError, match="no draws were given of the latent 'z'"
    ):
        replicate(lvm, {"other": torch.zeros(3, 20, 2)})
    with pytest.raises(
        vilvm.lvm.ContractError, match="its draws in the model have shape"
    ):
        replicate(lvm, {"z": torch.zeros(3, 19, 2)}, like=x)
