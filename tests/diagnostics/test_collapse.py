"""Active units, divergences and information in closed form; planted collapse is detected."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import vilvm
import vilvm.data.datasets
from vilvm.diagnostics.collapse import active_units, collapse
from vilvm.diagnostics.collapse_alarm import CollapseAlarm
from vilvm.diagnostics.finding import Severity
from vilvm.lvm import ContractError
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.objectives import Annealed
from vilvm.training.history import History, Record
from vilvm.training.result import Event
from vilvm.weights.guide_density import divergences, guide_log_prob


def test_only_units_following_the_data_are_active():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(torch.stack([0.5 * x, 0 * x], -1), 0.7).to_event(1)
            )

    active = active_units(vilvm.Pair(model, guide), torch.randn(2500))
    assert active["z"].tolist() == [True, False]


def test_propagated_noise_makes_no_unit_active():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.Normal(a, 1.0))

    def following(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.2 * x, 1.0))
            pyro.sample("b", dist.Normal(a, 1.0))

    # The mean of b has variance 0 or 0.04; the estimate has a standard error of
    # 1 / 50 / sqrt(2500) = 0.0004.
    found = {
        g.__name__: active_units(vilvm.Pair(model, g), torch.randn(2500))
        for g in (guide, following)
    }
    assert {
        name: [bool(units["a"]), bool(units["b"])] for name, units in found.items()
    } == {
        "guide": [False, False],
        "following": [True, True],
    }


def test_invalid_arguments_are_refused():
    lvm = vilvm.Pair(lambda x: None, lambda x: None)
    with pytest.raises(ValueError, match="at least two"):
        active_units(lvm, torch.zeros(1, 3))
    with pytest.raises(
        ValueError,
        match="active_units: threshold, a share of the prior's variance, must be between",
    ):
        active_units(lvm, torch.zeros(4, 3), threshold=1.0)
    with pytest.raises(
        ValueError,
        match="collapse: threshold, a share of the prior's variance, must be between",
    ):
        collapse(lvm, torch.zeros(4, 3), threshold=0.0)


def left(slope):
    """Three latents per datum, in a plate left of the data plate.

    Their means move with the datum by `slope`.
    """

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("time", 3, dim=-2):
                b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(b.sum(-2), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("time", 3, dim=-2):
            pyro.sample(
                "b", dist.Normal(slope * x + torch.tensor([[0.0], [1.0], [-1.0]]), 0.7)
            )

    return vilvm.Pair(model, guide)


@pytest.mark.parametrize(
    ("slope", "severity"), [(0.0, Severity.CRITICAL), (0.5, Severity.OK)]
)
def test_plate_left_of_data_plate_has_units(slope, severity):
    # 1003 data: active_units runs a thousand, then three.
    lvm, x = left(slope), torch.randn(1003)
    found = collapse(lvm, x, num_samples=2, num_data=300)
    assert found.finding.severity == severity
    assert found.active["b"].tolist() == 3 * [slope > 0]
    kl = (
        0.5
        * (
            (slope * x + torch.tensor([[0.0], [1.0], [-1.0]])) ** 2
            + 0.49
            - 1
            - math.log(0.49)
        )
        .mean(1)
        .double()
    )
    assert ((found.kl["b"] - kl).abs() <= 5 * found.kl_se["b"] + 1e-6).all()
    assert active_units(lvm, x)["b"].tolist() == 3 * [slope > 0]
    whole = collapse(lvm, x, num_samples=2, num_data=1003)
    torch.testing.assert_close(
        whole.spread["b"], (slope**2 * x.var()).double().expand(3), atol=1e-6, rtol=1e-4
    )
    torch.testing.assert_close(whole.kl["b"], kl, atol=1e-5, rtol=1e-5)


def normal_pair(prior_sd, noise_sd, gain, guide_sd):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, prior_sd))
            pyro.sample("x", dist.Normal(z, noise_sd), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(gain * x, guide_sd))

    return vilvm.Pair(model, guide)


def test_activity_is_relative_to_prior_variance():
    kept = 0.05**2 / (0.05**2 + 0.02**2)
    exact, x = (
        normal_pair(0.05, 0.02, kept, 0.05 * (1 - kept) ** 0.5),
        (0.05**2 + 0.02**2) ** 0.5 * torch.randn(500),
    )
    found = collapse(exact, x)
    assert found.spread["z"] < 0.01 < found.activity["z"]
    assert (
        abs(found.activity["z"] - kept**2 * x.var() / 0.05**2)
        < 5 * found.activity["z"] * (2 / 5000) ** 0.5
    )
    assert found.finding.severity == Severity.OK
    assert found.finding.about == "model"
    assert active_units(exact, x)["z"]
    # The mean moves by 0.5; the prior has standard deviation 10.
    wide, x = normal_pair(10.0, 10.0, 0.5, 10.0), torch.randn(500)
    found = collapse(wide, x)
    assert found.spread["z"] > 0.01 > found.activity["z"]
    assert found.finding.severity == Severity.CRITICAL
    assert not active_units(wide, x)["z"]


class Two:
    """A latent that follows the datum by its mean, and a second one whose spread is sd(x)."""

    def __init__(self, gain, sd):
        self.gain, self.sd = gain, sd

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(a, b.square().sum(-1).sqrt() + 0.1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(self.gain * x, (1 - self.gain**2) ** 0.5))
            pyro.sample(
                "b",
                dist.Normal(
                    torch.zeros(2), self.sd(x)[:, None] * torch.ones(2)
                ).to_event(1),
            )


@pytest.mark.parametrize(
    ("gain", "sd", "severity"),
    [
        (0.5, lambda x: 0.2 + 0.5 * x.abs(), Severity.OK),
        (0.0, lambda x: 0.2 + 0.5 * x.abs(), Severity.WARNING),  # a is unused
        (0.5, torch.ones_like, Severity.WARNING),  # b is unused
        (0.0, torch.ones_like, Severity.CRITICAL),
    ],
)
def test_spread_alone_can_carry_information(gain, sd, severity):
    found = collapse(Two(gain, sd), torch.randn(400))
    assert not found.active["b"].any()
    assert found.finding.severity == severity
    assert ("by their spread" in found.finding.verdict) == (
        severity < Severity.CRITICAL and not gain
    )


def test_seed_fixes_draws_and_generators_are_restored():
    lvm, x = Chain(), torch.randn(30)
    before = torch.get_rng_state()
    first, second = (collapse(lvm, x, seed=3) for _ in range(2))
    assert torch.equal(first.spread["b"], second.spread["b"])
    assert not torch.equal(first.spread["b"], collapse(lvm, x, seed=4).spread["b"])
    active_units(lvm, x, seed=3)
    assert torch.equal(before, torch.get_rng_state())


class Own(torch.nn.Module):
    """Guides of the same q(z | x): with parameters for each datum, and amortised."""

    def __init__(self, x, amortised):
        super().__init__()
        self.mean, self.amortised = torch.nn.Parameter(0.5 * x), amortised

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x
            )

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(0.5 * x if self.amortised else self.mean, 0.5**0.5)
            )


def test_per_datum_guide_is_run_on_all_data():
    x = 2**0.5 * torch.randn(1500)
    own, amortised = (
        collapse(Own(x, amortised), x, num_samples=4, num_data=300)
        for amortised in (False, True)
    )
    assert own.num_data == amortised.num_data == 300
    assert own.finding.severity == Severity.OK
    for name in ("rate", "information", "information_above"):
        one, other = getattr(own, name), getattr(amortised, name)
        assert len(one.values) == 300
        assert abs(one.mean - other.mean) < 5 * (one.se**2 + other.se**2) ** 0.5
    expected = 0.5 * math.log(2.0)  # the guide is exact, and I(x; z) = ½ log(1 + 1)
    assert (
        own.information.mean - 5 * own.information.se
        < expected
        < own.information_above.mean + 5 * own.information_above.se
    )
    assert active_units(Own(x, amortised=False), x)["z"]


# KL per dimension, mutual information, aggregated posterior


def linear_data(n, dtype=torch.float64):
    basis = torch.tensor(
        [
            [3.0, 0.0, 1.0],
            [0.0, 2.0, 1.0],
            [1.0, 1.0, 0.0],
            [0.5, -1.0, 0.0],
            [0.0, 0.5, -1.0],
        ],
        dtype=dtype,
    )
    return torch.randn(n, 3, dtype=dtype) @ basis.T + 0.7 * torch.randn(
        n, 5, dtype=dtype
    )


def test_ppca_equals_its_closed_forms():
    x = linear_data(1500)
    # The guide is exact, so its aggregated posterior over new data is the prior.
    lvm = PPCA(5, 3).double().maximise(x)
    fresh = lvm.W @ torch.randn(3, 400, dtype=torch.float64) + lvm.b[:, None]
    fresh = (
        fresh + lvm.log_sigma.exp() * torch.randn(5, 400, dtype=torch.float64)
    ).T.detach()
    found = collapse(lvm, fresh, num_samples=2)
    mean, variance = (
        ((fresh - lvm.b) @ lvm.V.T).detach(),
        (2 * lvm.log_s).exp().detach(),
    )
    kl = 0.5 * (mean**2 + variance - 1 - variance.log())
    torch.testing.assert_close(found.kl["z"], kl.mean(0))
    torch.testing.assert_close(found.kl_se["z"], kl.std(0) / len(kl) ** 0.5)
    expected = -0.5 * variance.log()  # the rate on new data, all of it information
    assert ((found.kl["z"] - expected).abs() < 5 * found.kl_se["z"]).all()
    assert abs(found.rate.mean - kl.sum(1).mean()) < 5 * found.rate.mc_se
    below, above, total = (
        found.information,
        found.information_above,
        expected.sum().item(),
    )
    assert below.mean - 5 * below.se < total < above.mean + 5 * above.se
    assert above.mean - below.mean < 0.5
    assert (
        found.rate.mean - above.mean - 5 * above.se
        < 0
        < found.marginal_kl.mean + 5 * found.marginal_kl.se
    )
    assert not found.saturated
    assert found.finding.severity == Severity.OK


def test_information_equals_independent_estimate():
    x = linear_data(60)
    lvm = PPCA(5, 3).double().maximise(x)
    found = collapse(lvm, x, num_samples=400)
    mean, scale = ((x - lvm.b) @ lvm.V.T).detach(), lvm.log_s.exp().detach()
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(60)),
        torch.distributions.Independent(
            torch.distributions.Normal(mean, scale.expand(60, 3)), 1
        ),
    )
    z = mean + scale * torch.randn(400, 60, 3, dtype=torch.float64)
    log_q = torch.distributions.Normal(mean, scale).log_prob(z).sum(-1)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    for ours, terms in (
        (found.information, log_q - mixture.log_prob(z)),
        (found.marginal_kl, mixture.log_prob(z) - log_p),
    ):
        other_se = (terms.var(0) / 400).sum().sqrt().item() / 60
        assert (
            abs(ours.mean - terms.mean().item())
            < 5 * (ours.mc_se**2 + other_se**2) ** 0.5
        )


def test_information_beyond_log_num_data_is_saturated():
    x = linear_data(300)
    lvm = PPCA(5, 3).double().maximise(x)
    found = collapse(lvm, x, num_data=8)
    assert found.num_data == 8
    assert found.information.mean <= math.log(8)
    assert found.rate.mean > math.log(8)
    assert found.saturated
    assert "saturated" in found.finding.verdict


def test_aggregated_posterior_off_prior_shows_in_marginal_kl():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            # independent of x, and different from the prior
            pyro.sample("z", dist.Normal(2.0 + 0 * x, 0.5))

    found = collapse(vilvm.Pair(model, guide), torch.randn(400), num_samples=20)
    kl = 0.5 * (4 + 0.25 - 1 - math.log(0.25))
    assert found.kl["z"].item() == pytest.approx(kl)
    assert abs(found.information.mean) < 1e-6
    assert abs(found.marginal_kl.mean - kl) < 5 * found.marginal_kl.mc_se
    moments = found.moments["z"]
    assert abs(moments.mean - 2) < 5 * 0.5 / 8000**0.5
    assert abs(moments.variance - 0.25) < 5 * 0.25 * (2 / 8000) ** 0.5
    assert abs(moments.prior_mean) < 5 / 8000**0.5
    assert abs(moments.prior_variance - 1) < 5 * (2 / 8000) ** 0.5
    assert found.finding.severity == Severity.CRITICAL


def pair_of(guide_of, prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide_of(x))

    return vilvm.Pair(model, guide)


def test_kl_without_closed_form_uses_draws():
    # Log-normal and gamma: E log q = −m − ½ log(2πe s²), E log p = a log b − lgamma(a) + (a −
    # 1) m − b exp(m + s²/2)
    lvm = pair_of(
        lambda x: dist.LogNormal(torch.stack([0.3 * x, 0 * x], -1), 0.4).to_event(1),
        dist.Gamma(torch.full((2,), 2.0), 1.5).to_event(1),
    )
    x = torch.randn(50)
    terms = divergences(lvm, x, 2000)["z"]
    m = torch.stack([0.3 * x, 0 * x], -1).double()
    expected = (
        -m
        - 0.5 * math.log(2 * math.pi * math.e * 0.16)
        - 2 * math.log(1.5)
        - m
        + 1.5 * (m + 0.08).exp()
    )
    assert terms.shape == (2000, 50, 2)
    assert ((terms.mean(0) - expected).abs() < 5 * terms.std(0) / 2000**0.5).all()


def test_dependent_dimensions_have_a_joint_kl():
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]])
    lvm = pair_of(
        lambda x: dist.MultivariateNormal(torch.stack([x, 0 * x], -1), covariance),
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
    )
    x = torch.randn(30)
    terms = divergences(lvm, x, 4000)["z"]
    expected = 0.5 * (0.9 + x.double() ** 2 - 2 - torch.logdet(covariance).double())
    assert terms.shape == (4000, 30)
    assert ((terms.mean(0) - expected).abs() < 5 * terms.std(0) / 4000**0.5).all()
    assert collapse(lvm, x).kl["z"].shape == ()


class Chain:
    """Latents that depend on one another, one of them in a plate left of that of the data."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("time", 3, dim=-2):
                b = pyro.sample("b", dist.Normal(a.sum(-1), 1.0))
            pyro.sample("x", dist.Normal(b.sum(-2), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample(
                "a", dist.Normal(x[:, None] * torch.ones(2), 0.5).to_event(1)
            )
            with pyro.plate("time", 3, dim=-2):
                pyro.sample(
                    "b",
                    dist.Normal(0.5 * a.sum(-1) + torch.arange(3.0)[:, None] * x, 0.7),
                )


@pytest.mark.parametrize("make", [Chain, lambda: PPCA(5, 3)])
def test_density_of_given_latents_equals_that_of_draws(make):
    lvm = make()
    x = torch.randn(6) if isinstance(lvm, Chain) else torch.randn(6, 5)
    weights = vilvm.log_weights(lvm, x, 4)
    before = torch.get_rng_state()
    torch.testing.assert_close(
        guide_log_prob(lvm, x, weights.latents), weights.log_guide
    )
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ContractError, match="no value was given"):
        guide_log_prob(lvm, x, {})
    with pytest.raises(ContractError, match="has shape"):
        guide_log_prob(
            lvm, x, {name: value[:, :-1] for name, value in weights.latents.items()}
        )


@pytest.mark.parametrize("rows", [50_000, 3_000])  # all draws in one pass, or in seven
def test_dependent_latents_have_the_right_rate(rows, monkeypatch):
    monkeypatch.setattr("vilvm.diagnostics._latent_runs.ROWS", rows)
    x = torch.randn(40)
    found = collapse(Chain(), x, num_samples=500)
    a = 0.5 * (x**2 + 0.25 - 1 - math.log(0.25))
    assert found.kl["a"].shape == (2,)
    torch.testing.assert_close(
        found.kl["a"], a.mean().double().expand(2), rtol=1e-4, atol=1e-5
    )
    # Given a, whose sum has mean 2x and variance 0.5, the mean of b at time t is off by
    # −½ Σa + t x.
    t = torch.arange(3.0)[:, None]
    b = 0.5 * (((t - 1) * x) ** 2 + 0.25 * 0.5 + 0.49 - 1 - math.log(0.49)).mean(1)
    torch.testing.assert_close(found.kl["b"], b.double(), rtol=0.05, atol=0.0)
    assert abs(found.rate.mean - (2 * a.mean() + b.sum()).item()) < 5 * found.rate.mc_se
    # The noise of a, of variance 0.5 / 4, is averaged over 500 draws.
    means = torch.stack([x + (t * x)[i] for i in range(3)])
    error = ((2 * means.var(1) + 0.125 / 500) * 0.125 / 500 / 39).sqrt()
    assert ((found.spread["b"] - means.var(1)).abs() < 5 * error).all()


def test_auxiliary_guide_has_rate_without_information():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = pyro.infer.autoguide.AutoNormal(model)
    x = torch.randn(6)
    guide(x)
    found = collapse(vilvm.Pair(model, guide), x)
    assert found.information is None
    assert found.kl["z"].isfinite()
    pyro.clear_param_store()
    with pytest.raises(ContractError, match="auxiliary"):
        guide_log_prob(vilvm.Pair(model, guide), x, {"z": torch.ones(2, 6)})


def test_pairs_without_a_rate_are_refused():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def guide(x):
        pyro.sample("m", dist.Normal(0.0, 1.0))

    with pytest.raises(ContractError, match="its data share"):
        collapse(vilvm.Pair(model, guide), torch.randn(4))
    with pytest.raises(ContractError, match="on one point"):
        collapse(
            pair_of(
                lambda x: dist.Delta(torch.stack([x, x], -1)).to_event(1),
                dist.Normal(torch.zeros(2), 1.0).to_event(1),
            ),
            torch.randn(4),
        )
    with pytest.raises(ValueError, match="at least 2"):
        collapse(PPCA(5, 3), torch.randn(4, 5), num_samples=1)


# Real pictures: β = 50 plants a collapse; β = 1 and a warm-up are healthy.


class Beta(Annealed):
    """The rate with a constant weight of 50."""

    weight = 50.0


def small_vae():
    torch.manual_seed(0)
    return VAE(64, 4, encoder_hidden=(32,), decoder_hidden=(32,))


def trained(objective, callbacks):
    dataset = vilvm.data.datasets.digits()
    lvm = small_vae()
    fast = partial(torch.optim.Adam, lr=3e-3)
    vilvm.fit(
        lvm,
        dataset.train,
        steps=350,
        batch_size=270,
        objective=objective,
        optimizer=fast,
        callbacks=callbacks,
    )
    return collapse(lvm, dataset.test, num_samples=2)


@pytest.mark.slow
def test_collapsed_vae_is_detected_by_alarm_and_diagnostic():
    alarm = CollapseAlarm()
    with pytest.warns(UserWarning, match="Posterior collapse"):
        found = trained(Beta(Trace_ELBO(), warmup=1), [alarm])
    assert alarm.alarmed
    assert found.finding.severity == Severity.CRITICAL
    assert not found.active["z"].any()
    assert "warm-up" in found.finding.advice


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        Trace_ELBO(),
        pytest.param(Annealed(Trace_ELBO(), warmup=200), marks=pytest.mark.slow),
    ],
    ids=["elbo", "warm-up"],
)
def test_healthy_vae_raises_no_alarm(objective):
    alarm = CollapseAlarm(stop=True)
    found = trained(objective, [alarm])
    assert not alarm.alarmed
    assert found.finding.severity <= Severity.NOTE


def event(rates, lvm=None):
    zeros = dict.fromkeys(
        (
            "elbo",
            "validation_elbo",
            "validation_se",
            "distortion",
            "learning_rate",
            "gradient_norm",
            "seconds",
        ),
        0.0,
    )
    rows = [
        Record(
            epoch=i, step=50 * i + 50, rate=r, skipped=0, data_per_second=0.0, **zeros
        )
        for i, r in enumerate(rates)
    ]
    return Event(lvm, History(rows))


@pytest.mark.parametrize(
    ("rates", "alarms"),
    [
        ([20.0, 8.0, 3.0, 1.0, 0.01, 0.01, 0.01, 0.01, 0.001], True),
        (
            [40.0, 30.0, 20.0, 15.0, 12.0, 11.0, 11.0],
            False,
        ),  # falling during the warm-up
        ([0.001, 0.002, 0.004, 0.01, 0.03, 0.06], False),  # rising at the start
        ([0.001, 0.002, 0.001], False),  # too few records
        ([0.01, 0.01, math.nan, 0.01, 0.001], False),
    ],
)
def test_alarm_depends_on_recent_rates(rates, alarms):
    alarm = CollapseAlarm(stop=True)
    if not alarms:
        assert alarm(event(rates)) is False
        return
    with pytest.warns(UserWarning, match="rate is 0.008"):
        assert alarm(event(rates)) is True
    assert alarm(event(rates)) is True  # A warning would be an error here.


def test_alarm_can_use_data_and_wait():
    lvm = PPCA(5, 3).double().maximise(linear_data(200))
    low = [0.01, 0.01, 0.01, 0.01, 0.001]
    assert CollapseAlarm(linear_data(100), stop=True)(event(low, lvm)) is False
    assert CollapseAlarm(after=100, stop=True)(event(low, lvm)) is False
    with torch.no_grad():
        lvm.V.zero_()
    with pytest.warns(UserWarning, match="Posterior collapse"):
        assert CollapseAlarm(linear_data(100), stop=True)(event(low, lvm)) is True
    for bad in ({"threshold": 0.0}, {"window": 1}):
        with pytest.raises(ValueError, match="CollapseAlarm"):
            CollapseAlarm(**bad)
