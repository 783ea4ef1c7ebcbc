"""Bounds against closed forms.

Comparisons in Monte Carlo standard errors, |z| < 5: a false alarm in 1.7 million.
"""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import vilvm
from vilvm.data import DynamicBinarisation
from vilvm.evaluation._sample_moments import moments_of
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE


class LinearGaussian(torch.nn.Module):
    """Probabilistic PCA, z ~ N(0, I), x ~ N(W z, s²), with log p(x) and p(z | x) known.

    The guide is the exact posterior, its scale multiplied by `inflate` and its mean shifted by
    `shift`.
    """

    def __init__(self, inflate=1.0, shift=0.0, dim=5, latent=2):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W = torch.randn(dim, latent, generator=generator, dtype=torch.float64)
        self.s, self.inflate, self.shift = 0.7, inflate, shift
        self.slope = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        precision = (
            torch.eye(latent, dtype=torch.float64) + self.W.T @ self.W / self.s**2
        )
        self.cov = precision.inverse()

    def prior(self):
        return dist.Normal(
            torch.zeros(self.W.shape[1], dtype=torch.float64), 1.0
        ).to_event(1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(z @ self.W.T, self.s).to_event(1), obs=x)

    def guide(self, x):
        mean = self.slope * x @ self.W @ self.cov / self.s**2
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.MultivariateNormal(mean + self.shift, self.cov * self.inflate**2),
            )

    def evidence(self, x):
        cov = self.W @ self.W.T + self.s**2 * torch.eye(
            len(self.W), dtype=torch.float64
        )
        return dist.MultivariateNormal(
            torch.zeros(len(self.W), dtype=torch.float64), cov
        ).log_prob(x)


@pytest.fixture
def x():
    return (
        torch.randn(
            40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        * 1.5
    )


def test_exact_posterior_gives_constant_weights(x):
    lvm = LinearGaussian()
    weights = vilvm.log_weights(lvm, x, 20).log_weight
    assert (weights - lvm.evidence(x)).abs().max() < 1e-4


def test_iwae_equals_the_evidence(x):
    lvm = LinearGaussian(inflate=1.3)
    result = vilvm.evaluate(lvm, x, num_samples=5000)
    iwae, truth = result.bounds["iwae"], lvm.evidence(x)
    # At S = 5,000 the bias, about −Var(w) / 2S, is far below the standard error.
    assert ((iwae.values - truth) / iwae.errors).abs().max() < 5
    assert abs(iwae.mean - truth.mean().item()) < 5 * iwae.mc_se


def test_elbo_is_evidence_minus_kl(x):
    lvm = LinearGaussian(inflate=1.3, shift=0.2)
    elbo = vilvm.evaluate(lvm, x, num_samples=4000).bounds["elbo"]
    mean = x @ lvm.W @ lvm.cov / lvm.s**2
    posterior = torch.distributions.MultivariateNormal(mean, lvm.cov)
    guide = torch.distributions.MultivariateNormal(mean + 0.2, lvm.cov * 1.3**2)
    gap = torch.distributions.kl_divergence(guide, posterior)
    assert ((elbo.values - (lvm.evidence(x) - gap)) / elbo.errors).abs().max() < 5


def test_bounds_are_ordered_and_increase_with_samples(x):
    lvm = LinearGaussian(inflate=1.4, shift=0.5)
    truth = lvm.evidence(x).mean().item()
    many = x.repeat(
        500, 1
    )  # the expectation of IWAE_k needs many repetitions at each k
    before, spread, gaps = -math.inf, 0.0, []
    for k in (1, 2, 5, 20, 100):
        bound = vilvm.evaluate(lvm, many, num_samples=k, batch_size=4000).bounds["iwae"]
        # Repetitions of one datum spread by Monte Carlo alone.
        error = bound.values.reshape(500, -1).mean(1).std().item() / 500**0.5
        assert bound.mean > before - 5 * math.hypot(error, spread)
        assert bound.mean < truth + 5 * error
        before, spread = bound.mean, error
        gaps.append(truth - bound.mean)
    assert gaps[-1] < 0.1 * gaps[0]


def test_rate_plus_distortion_is_minus_elbo(x):
    lvm = LinearGaussian(inflate=1.3)
    result = vilvm.evaluate(lvm, x, num_samples=2000)
    assert result.bounds["elbo"].mean == pytest.approx(
        -result.rate.mean - result.distortion.mean, abs=1e-9
    )
    mean = x @ lvm.W @ lvm.cov / lvm.s**2
    guide = torch.distributions.MultivariateNormal(mean, lvm.cov * 1.3**2)
    prior = torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    )
    truth = torch.distributions.kl_divergence(guide, prior)
    assert ((result.rate.values - truth) / result.rate.errors).abs().max() < 5


def test_effective_sample_size_has_its_closed_form():
    # q = N(0, t²) for a posterior N(0, 1): E[w]² / E[w²] = sqrt(2 t² − 1) / t², for t² > 1/2.
    class Shift(LinearGaussian):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample(
                    "z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
                )
                pyro.sample("x", dist.Normal(0.0 * z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0 * self.slope, 1.2))

    ess = (
        vilvm.evaluate(
            Shift(), torch.zeros(200, dtype=torch.float64), num_samples=5000
        ).ess
        / 5000
    )
    truth = math.sqrt(2 * 1.44 - 1) / 1.44
    assert abs(ess.mean().item() - truth) < 5 * ess.std().item() / 200**0.5 + 2e-4


class Scalar(torch.nn.Module):
    """100 points with prior N(0, 1) and likelihood N(z, 1), so that p(x) = N(x; 0, 2).

    Pyro's RenyiELBO exceeds log p(x) here.
    """

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.slope = torch.nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("z", dist.Normal(self.slope * x, 1.0))

    def wrap(self, body, x):
        if self.kind == "scale":
            with poutine.scale(scale=1 / 100), pyro.plate("data", len(x)):
                body(x)
        elif self.kind == "subsample":
            with pyro.plate("data", len(x), subsample_size=20) as index:
                body(x[index])
        elif self.kind == "given":
            with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
                body(x)


class Wrapped(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner = Scalar(kind)

    def model(self, x):
        self.inner.wrap(self.inner.model, x)

    def guide(self, x):
        self.inner.wrap(self.inner.guide, x)


@pytest.mark.parametrize(
    ("kind", "scale"), [("scale", 0.01), ("subsample", 5.0), ("given", 10.0)]
)
def test_bounds_are_right_under_scale(kind, scale):
    x = torch.randn(100, generator=torch.Generator().manual_seed(2)) * 2**0.5
    lvm = Wrapped(kind)
    weights = vilvm.log_weights(lvm, x, 3000)
    seen = x if weights.indices is None else x[weights.indices]
    truth = dist.Normal(0.0, 2**0.5).log_prob(seen)
    assert weights.log_weight.shape == (3000, len(seen))
    assert weights.model_scales["x"] == pytest.approx(scale)
    assert (
        weights.model_scales["z"] == weights.guide_scales["z"] == pytest.approx(scale)
    )
    w = weights.log_weight.double()
    bound = w.logsumexp(0) - math.log(3000)
    ratio = (w - w.logsumexp(0)).exp()
    error = (ratio.square().sum(0) - 1 / 3000).sqrt()
    assert ((bound - truth) / error).abs().max() < 5


def test_subsampled_plate_keeps_one_subsample_in_all_chunks():
    x = torch.randn(100, generator=torch.Generator().manual_seed(2)) * 2**0.5
    result = vilvm.evaluate(
        Wrapped("subsample"), x, num_samples=4000, batch_size=100, chunk=100
    )
    assert len(result.bounds["iwae"].values) == result.protocol["num_data"] == 20
    values, errors = result.bounds["iwae"]
    truth = dist.Normal(0.0, 2**0.5).log_prob(x)
    # Every value must be the evidence of some datum.
    assert ((values[:, None] - truth) / errors[:, None]).abs().min(1).values.max() < 5


def test_shared_latents_make_one_joint_bound():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x = torch.tensor([0.3, -0.2, 1.1])

    def guide(x):
        pyro.sample("mu", dist.Normal(pyro.param("m", x.sum() / 4), 0.6))

    result = vilvm.evaluate(vilvm.Pair(model, guide), x, num_samples=20_000)
    truth = (
        torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1)
        .log_prob(x)
        .item()
    )
    assert result.protocol["unit"] == "nats, all data together"
    bound = result.bounds["iwae"]
    assert bound.values.shape == (1,)
    assert abs(bound.mean - truth) < 5 * bound.se


class Series(torch.nn.Module):
    """Series of three values, each with its own z ~ N(0, 1) and x ~ N(z, 1).

    The guide's scale is 1.5 times the posterior's.
    """

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        with pyro.plate("time", 3, dim=-2), pyro.plate("series", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(self, x):
        with pyro.plate("time", 3, dim=-2), pyro.plate("series", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.slope * x.T, 1.5 * 0.5**0.5))


# 3 is the size of the other plate, and of the last batch if batches have 4
@pytest.mark.parametrize("batch_size", [3, 4, 7])
def test_data_plate_is_found_for_any_batch_size(batch_size):
    x = 3 * torch.randn(7, 3, generator=torch.Generator().manual_seed(3))
    bound = vilvm.evaluate(Series(), x, num_samples=4000, batch_size=batch_size).bounds[
        "iwae"
    ]
    truth = dist.Normal(0.0, 2**0.5).log_prob(x).sum(1)
    assert ((bound.values - truth) / bound.errors).abs().max() < 5


def test_a_subsample_within_a_joint_weight_is_refused():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            with pyro.plate("time", 10, dim=-2, subsample_size=2) as index:
                pyro.sample("x", dist.Normal(u, 1.0), obs=x.T[index])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("u", dist.Normal(x.mean(1), 1.0))

    with pytest.raises(vilvm.ContractError, match="subsamples its plate 'time'"):
        vilvm.evaluate(vilvm.Pair(model, guide), torch.zeros(4, 10), num_samples=3)


def test_sum_over_many_data_keeps_precision():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1e-3), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(0.0, 1e-6))

    x = torch.linspace(-0.02, 0.02, 60_000)
    result = vilvm.evaluate(vilvm.Pair(model, guide), x, num_samples=50)
    assert (
        abs(result.bounds["elbo"].mean + result.rate.mean + result.distortion.mean)
        < 1e-6
    )
    exact = (
        dist.Normal(0.0, torch.tensor(1e-3, dtype=torch.float64))
        .log_prob(x.double())
        .sum()
    )
    assert result.distortion.mean == pytest.approx(-exact.item(), rel=1e-6)


@pytest.mark.slow
def test_standard_errors_match_spread_of_repetitions(x):
    """200 seeds give a standard deviation to 5 %; the tolerance, 30 %, is 6 standard errors."""
    lvm, data = LinearGaussian(inflate=1.2, shift=0.1), x[:10]
    runs = [
        vilvm.evaluate(lvm, data, num_samples=400, chunk=133, batch_size=7, seed=seed)
        for seed in range(200)
    ]
    for quantity in (
        lambda r: r.bounds["elbo"],
        lambda r: r.bounds["iwae"],
        lambda r: r.rate,
        lambda r: r.distortion,
    ):
        estimates = [quantity(run) for run in runs]
        spread = torch.stack([e.values for e in estimates]).std(0)
        claimed = torch.stack([e.errors for e in estimates]).mean(0)
        assert (spread / claimed).log().mean().exp().item() == pytest.approx(
            1, abs=0.15
        )
        assert torch.tensor([e.mean for e in estimates]).std().item() / estimates[
            0
        ].mc_se == pytest.approx(1, abs=0.3)


@pytest.mark.slow
def test_standard_error_of_mean_includes_new_data():
    lvm = LinearGaussian()
    cov = lvm.W @ lvm.W.T + lvm.s**2 * torch.eye(5, dtype=torch.float64)
    drawn = torch.distributions.MultivariateNormal(
        torch.zeros(5, dtype=torch.float64), cov
    ).sample((200, 50))
    bounds = [vilvm.evaluate(lvm, data, num_samples=2).bounds["elbo"] for data in drawn]
    spread = torch.tensor([b.mean for b in bounds]).std().item()
    assert spread / torch.tensor([b.se for b in bounds]).mean().item() == pytest.approx(
        1, abs=0.3
    )


def test_fresh_transform_is_drawn_from_the_seed():
    grey = vilvm.Data(torch.full((50, 6), 0.5), transform=DynamicBinarisation())
    first, again, other = (grey.fixed(seed).x for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    lvm = VAE(data_dim=6, latent_dim=2)
    protocol = vilvm.evaluate(lvm, grey, num_samples=2).protocol
    assert protocol["transform"] == repr(DynamicBinarisation())
    distortions = [
        vilvm.evaluate(lvm, grey, num_samples=2, seed=seed).distortion.values
        for seed in (0, 1)
    ]
    assert not torch.equal(*distortions)


def test_zero_weights_give_infinite_elbo_and_finite_iwae():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0))
            # probability zero if z < x / 2
            pyro.sample("x", dist.Uniform(0.0, 2 * z, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(0.0 * x, 1.0))

    x = torch.tensor([0.5, 1.0])
    with pyro.validation_enabled(False):
        result = vilvm.evaluate(
            vilvm.Pair(model, guide), x, num_samples=20_000, chunk=7000
        )
    truth = (-0.5 * (x / 2).log()).log()  # p(x) = ∫ 1 / 2z dz over z from x / 2 to 1
    iwae = result.bounds["iwae"]
    assert ((iwae.values - truth) / iwae.errors).abs().max() < 5
    assert (result.bounds["elbo"].values == -math.inf).all()
    assert (result.distortion.values == math.inf).all()
    assert result.rate.mean == pytest.approx(0.0, abs=1e-9)


def test_model_without_latents_reports_its_likelihood():
    class Fixed(torch.nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        def guide(self, x): ...

    x = torch.tensor([0.3, -1.0])
    result = vilvm.evaluate(Fixed(), x, num_samples=3)
    for bound in result.bounds.values():
        torch.testing.assert_close(
            bound.values,
            dist.Normal(0.0, 1.0).log_prob(x).double(),
            rtol=1e-6,
            atol=1e-6,
        )
    assert result.rate.mean == 0


def test_chunks_and_batches_change_only_the_draws(x):
    lvm = LinearGaussian(inflate=1.2)
    runs = [
        vilvm.evaluate(lvm, x, num_samples=1000, batch_size=b, chunk=c).bounds["elbo"]
        for b, c in ((40, 1000), (7, 33))
    ]
    error = (runs[0].errors.square() + runs[1].errors.square()).sqrt()
    assert ((runs[0].values - runs[1].values) / error).abs().max() < 5


def test_evaluation_is_repeatable_and_restores_generators(x):
    lvm = LinearGaussian()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = vilvm.evaluate(lvm, x, num_samples=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(
        first.bounds["iwae"].values,
        vilvm.evaluate(lvm, x, num_samples=10).bounds["iwae"].values,
    )


def test_mode_of_every_module_is_restored(x):
    lvm = LinearGaussian()
    lvm.part = torch.nn.Dropout().eval()
    lvm.train(True)
    lvm.part.eval()
    vilvm.evaluate(lvm, x, num_samples=2)
    assert lvm.training
    assert not lvm.part.training


def test_protocol_records_what_numbers_depend_on(x):
    data = vilvm.Data(x, name="mine", split="test")
    result = vilvm.evaluate(LinearGaussian(), data, num_samples=7, seed=3)
    assert result.protocol == {
        "data": "mine",
        "split": "test",
        "num_data": 40,
        "transform": "none",
        "seed": 3,
        "num_samples": 7,
        "likelihood": {"x": "Normal"},
        "unit": "nats per datum",
    }
    assert result.to_dict()["bounds"]["iwae"]["num_samples"] == 7


@pytest.mark.slow
def test_peak_memory_of_5000_samples_on_1000_images():
    # The pixels of all samples at once would be 16 GB.
    script = """
import resource, torch, vilvm
from vilvm.models.vae import VAE
x = torch.bernoulli(torch.full((1000, 784), 0.2))
vilvm.evaluate(VAE(decoder_hidden=(256, 96)), x, num_samples=5000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert int(done.stdout) * 1024 < 2e9


def test_an_object_without_a_model_breaks_the_contract():
    with pytest.raises(vilvm.ContractError, match="has no method model"):
        vilvm.evaluate(object(), torch.zeros(4, 2), precision="bf16")  # pyright: ignore


def test_a_result_in_place_of_a_pair_is_named_with_what_to_pass():
    found = SimpleNamespace(lvm=PPCA(3, 1))
    with pytest.raises(
        vilvm.ContractError, match=r"SimpleNamespace .* Pass its \.lvm\."
    ):
        vilvm.evaluate(found, torch.zeros(4, 3))  # pyright: ignore


def test_few_effective_samples_are_said():
    x = torch.zeros(4, 3)
    exact = PPCA(3, 1).maximise(torch.randn(50, 3))
    assert "effective samples" not in str(vilvm.evaluate(exact, x, num_samples=50))
    wrong = vilvm.Pair(exact.model, lambda x: exact.guide(x + 100))
    assert "The weights of 4 of 4 data have fewer than 5 effective samples" in str(
        vilvm.evaluate(wrong, x, num_samples=50)
    )


def test_chunks_are_added_row_by_row():
    log_w = torch.randn(6, 30, generator=torch.Generator().manual_seed(0)).double()
    total, total2 = (log_w[:2] * k for k in (1, 2))
    expected = [torch.logsumexp(rows, 0) for rows in (total, total2)]
    for start in (2, 4):
        part = log_w[start : start + 2]
        for row, k in enumerate((1, 2)):
            new = torch.logsumexp(k * part, 0)
            expected[row] = torch.logaddexp(expected[row], new)
    passes = [[log_w[i : i + 2]] * 3 for i in (0, 2, 4)]
    rows = moments_of(passes, 6)
    assert torch.equal(rows[:, :2].T, torch.stack(expected))
