"""Calibration of guides whose posterior is known.

The exact guide passes at the stated rate, and planted faults are detected.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy import stats

import vilvm
from vilvm.diagnostics.finding import Severity
from vilvm.diagnostics.sbc import sbc
from vilvm.diagnostics.tarp import tarp
from vilvm.diagnostics.vsbc import vsbc
from vilvm.evaluation import Schedule, ais, bdmc
from vilvm.lvm import ContractError, NotApplicable
from vilvm.models.ppca import PPCA
from vilvm.weights import simulate
from vilvm.wrappers import with_prior_guide


@pytest.fixture
def exact():
    """A pair whose guide is the posterior."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(2, 5, generator=generator) * torch.tensor([[2.0], [1.0]])
    x = torch.randn(200, 2, generator=generator) @ basis + 0.5 * torch.randn(
        200, 5, generator=generator
    )
    return PPCA(5, 2).maximise(x)


class Offset(torch.nn.Module):
    """A pair whose guide receives the data plus an offset."""

    def __init__(self, lvm, by):
        super().__init__()
        self.lvm, self.by = lvm, by

    def model(self, x):
        self.lvm.model(x)

    def guide(self, x):
        self.lvm.guide(x + self.by)


def rescale(lvm, factor):
    with torch.no_grad():
        lvm.log_s += math.log(factor)
    return lvm


@pytest.mark.slow
@pytest.mark.parametrize("reference", [None, "data", "prior"])
def test_exact_posterior_is_rejected_at_stated_rate(exact, reference):
    runs, level = 20, 0.1
    size = {"num_simulations": 100, "num_draws": 19, "false_alarm": level}
    found = [
        sbc(exact, seed=s, **size)
        if reference is None
        else tarp(exact, reference=reference, seed=s, **size)
        for s in range(runs)
    ]
    alarms = sum(f.finding.severity > Severity.OK for f in found)
    assert alarms <= stats.binom.isf(1e-6, runs, level)


@pytest.mark.slow
def test_half_width_guide_is_too_narrow(exact):
    lvm = rescale(exact, 0.5)
    found = sbc(lvm)
    # The coverage of a 90 % interval of half the width.
    held = float(2 * stats.norm.cdf(stats.norm.ppf(0.95) / 2) - 1)
    # The intervals are those of 99 draws, hence the tolerance.
    assert (
        (found.coverage.shares[2, :2] - held).abs()
        < 5 * found.coverage.errors[2, :2] + 0.02
    ).all()
    assert found.finding.severity == Severity.CRITICAL
    assert "too narrow: its 90 % intervals contain the truth" in found.finding.verdict
    for reference in ("data", "prior"):
        assert tarp(lvm, reference=reference).finding.severity == Severity.CRITICAL


@pytest.mark.slow
def test_guide_twice_as_wide_is_a_warning_only(exact):
    lvm = rescale(exact, 2.0)
    assert "too wide" in sbc(lvm).finding.verdict
    assert [f.finding.severity for f in (sbc(lvm), tarp(lvm))] == [Severity.WARNING] * 2


@pytest.mark.slow
def test_slightly_narrow_guide_is_noted(exact):
    lvm = rescale(exact, 0.93)
    found = sbc(lvm, num_simulations=5000).finding
    assert found.severity == Severity.NOTE


@pytest.mark.parametrize("side", [1, -1])
def test_shifted_guide_is_detected_with_its_side(exact, side):
    # A shift by one posterior standard deviation of the first component.
    step = exact.log_s[0].exp() / exact.V[0].norm() ** 2 * exact.V[0]
    lvm = Offset(exact, side * step.detach())
    found = sbc(lvm)
    mean_rank = found.ranks[:, 0].double().mean().item() / 99
    # P(truth > draw) = Φ(−1/√2) for a draw one standard deviation too high.
    assert mean_rank == pytest.approx(
        stats.norm.cdf(-side / math.sqrt(2)), abs=5 * math.sqrt(1 / 12 / 1000)
    )
    assert (
        f"z[0]: the posterior lies too {'high' if side > 0 else 'low'}"
        in found.finding.verdict
    )
    assert found.finding.severity == Severity.CRITICAL


@pytest.mark.slow
def test_only_likelihood_and_near_reference_detect_prior_guide(exact):
    lvm = with_prior_guide(exact)
    found = sbc(lvm)
    departs = dict(zip(found.names, (found.adjusted < 1e-4).tolist(), strict=True))
    assert departs == {"z[0]": False, "z[1]": False, "log p(x | z)": True}
    assert found.finding.severity == Severity.WARNING
    assert "explain the data worse than the truth does" in found.finding.verdict
    assert tarp(lvm, reference="data").p_value < 1e-10
    assert tarp(lvm, reference="prior").p_value > 1e-4


def two_levels(scale=1.0):
    """Two latents per datum, b ~ N(0, 1), z ~ N(b, 1), x ~ N(z, 1), and an exact guide."""

    def model(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(b, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(x / 3, scale * (2 / 3) ** 0.5))
            pyro.sample("z", dist.Normal((b + x) / 2, 0.5**0.5))

    return vilvm.Pair(model, guide)


@pytest.mark.slow
def test_hierarchy_of_local_latents_is_calibrated():
    assert sbc(two_levels(), seed=1, false_alarm=1e-6).finding.severity == Severity.OK
    found = sbc(two_levels(0.5))
    assert found.names == ("b", "z", "log p(x | z)")
    assert "b: the posterior is too narrow" in found.finding.verdict


def shared_mean(amortised=True, scale=1.0):
    """A mean that n data share, and noise of known scales c; the batch is (x, c)."""

    def model(batch):
        x, c = batch
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, c), obs=x)

    def guide(batch):
        x, c = batch
        precision = 1 + (c**-2).sum()
        mean = (x / c**2).sum() / precision if amortised else torch.tensor(0.3)
        pyro.sample("m", dist.Normal(mean, scale * precision**-0.5))

    return vilvm.Pair(model, guide)


def shifted():
    """A model that observes its batch plus one."""

    def model(batch):
        pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=batch[0] + 1)

    return vilvm.Pair(
        model, lambda batch: pyro.sample("m", dist.Normal(batch[0].mean(), 1.0))
    )


def test_simulated_data_replace_those_in_the_batch():
    c = torch.tensor([0.5, 1.0, 2.0, 4.0])
    like = (torch.zeros(4), c)
    first = sbc(shared_mean(), 20, 9, like=like)
    assert torch.equal(
        first.ranks,
        sbc(
            shared_mean(), 20, 9, like=like, rebuild=lambda draws: (draws["x"], c)
        ).ranks,
    )


@pytest.mark.slow
def test_shared_latent_is_calibrated():
    c = torch.tensor([0.5, 1.0, 2.0, 4.0])
    like, options = (
        (torch.zeros(4), c),
        {
            "rebuild": lambda draws: (draws["x"], c),
            "num_simulations": 200,
            "num_draws": 49,
        },
    )
    found = sbc(shared_mean(), like=like, false_alarm=1e-6, **options)
    assert found.ranks.shape == (200, 2)
    assert found.finding.severity == Severity.OK
    assert (
        tarp(shared_mean(), like=like, false_alarm=1e-6, **options).finding.severity
        == Severity.OK
    )
    assert (
        sbc(shared_mean(scale=0.5), like=like, **options).finding.severity
        == Severity.CRITICAL
    )
    assert (
        tarp(shared_mean(scale=0.4), like=like, **options).finding.severity
        >= Severity.WARNING
    )


def test_covariates_of_local_latents_are_cut_into_passes():
    def model(batch):
        x, c = batch
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, c).to_event(1), obs=x)

    def guide(batch):
        x, c = batch
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(x / (1 + c**2), c / (1 + c**2).sqrt()).to_event(1)
            )

    c = torch.linspace(0.2, 3.0, 30)[:, None]
    like = (torch.zeros(30, 1), c)

    def rebuild(draws):
        assert draws["x"].shape == (30, 1)
        return draws["x"], c

    lvm = vilvm.Pair(model, guide)
    for batch_size in (7, 30, 100):
        found = sbc(
            lvm,
            200,
            19,
            like=like,
            rebuild=rebuild,
            batch_size=batch_size,
            false_alarm=1e-6,
        )
        assert found.ranks.shape == (200, 2)
        assert found.finding.severity == Severity.OK


@pytest.mark.slow
def test_discrete_latent_is_calibrated():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x, tilt=0.0):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "k", dist.Bernoulli(logits=math.log(0.3 / 0.7) + x - 0.5 + tilt)
            )

    assert (
        sbc(vilvm.Pair(model, guide), false_alarm=1e-6).finding.severity == Severity.OK
    )
    assert (
        tarp(vilvm.Pair(model, guide), false_alarm=1e-6).finding.severity == Severity.OK
    )
    found = sbc(
        vilvm.Pair(model, lambda x: guide(x, 1.0)), num_simulations=2000
    ).finding
    assert found.severity >= Severity.WARNING
    assert "k: the posterior lies too high" in found.verdict


def test_seed_fixes_ranks_and_generator_is_restored(exact):
    before = torch.get_rng_state()
    runs = [sbc(exact, 50, 9, seed=s, batch_size=20).ranks for s in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(before, torch.get_rng_state())


def test_expected_coverage_runs_from_none_to_all(exact):
    level, found = tarp(exact, 50, 9).expected_coverage
    assert level.tolist() == pytest.approx([i / 10 for i in range(11)])
    assert (found[0], found[-1]) == (0, 1)
    assert (found.diff() >= 0).all()


@pytest.mark.parametrize("check", [sbc, tarp])
def test_guides_that_cannot_be_calibrated_are_refused(exact, check):
    like = (torch.zeros(4), torch.ones(4))

    def rebuild(draws):
        return draws["x"], torch.ones(4)

    with pytest.raises(NotApplicable, match=r"does not read its batch.*vsbc"):
        check(shared_mean(amortised=False), like=like, rebuild=rebuild)
    with pytest.raises(
        ContractError,
        match=r"observes a tensor of shape .* which is neither one of the batch's tensors",
    ):
        check(shifted(), like=like)
    with pytest.raises(ValueError, match="num_draws must be a whole number"):
        check(exact, num_draws=0)
    with pytest.raises(ValueError, match="false_alarm must be between 0 and 1"):
        check(exact, false_alarm=1.0)

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    with pytest.raises(NotApplicable, match="its data share; pass like="):
        check(vilvm.Pair(model, lambda x: pyro.sample("m", dist.Normal(x.mean(), 1.0))))
    with pytest.raises(ContractError, match="no spread to calibrate"):
        check(
            vilvm.Pair(model, lambda x: pyro.sample("m", dist.Delta(x.mean()))),
            like=torch.zeros(4),
        )


def local(x):
    """One latent per datum."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


class PerDatum(torch.nn.Module):
    """A guide with parameters for each of `size` data; if `reads`, it also reads its batch."""

    def __init__(self, size, reads):
        super().__init__()
        self.loc, self.reads = torch.nn.Parameter(torch.zeros(size, 2)), reads

    def model(self, x):
        local(x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.Normal(self.loc + (x / 2 if self.reads else 0), 0.7).to_event(1),
            )


@pytest.mark.parametrize("check", [sbc, tarp])
def test_per_datum_guide_is_not_applicable(check):
    x = torch.randn(12, 2)
    fitted = vilvm.Pair(local, AutoNormal(local))
    vilvm.fit(fitted, x, steps=1)
    for lvm in (fitted, PerDatum(12, reads=False), PerDatum(12, reads=True)):
        for like in (None, x):
            with pytest.raises(NotApplicable, match="vsbc"):
                check(lvm, 20, 9, like=like)

    def broken(x):
        raise RuntimeError("broken")

    with pytest.raises(ContractError, match="broken") as caught:
        check(vilvm.Pair(local, broken), 20, 9)
    assert not isinstance(caught.value, NotApplicable)


class Noisy(torch.nn.Module):
    """A decoder that behaves differently in training mode."""

    def __init__(self):
        super().__init__()
        self.decoder = torch.nn.Sequential(
            torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)
        )
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)
        )
        self.decoder[2].eval()  # a part in evaluation mode already

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 4)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


SHORT = Schedule(num_chains=4, num_temperatures=2, leapfrog=1)


@pytest.mark.parametrize(
    "act",
    [
        lambda lvm, x: simulate(lvm, 6),
        lambda lvm, x: simulate(lvm, 6, like=x),
        lambda lvm, x: ais(lvm, x, SHORT),
        lambda lvm, x: bdmc(lvm, SHORT, num_simulations=6),
        lambda lvm, x: bdmc(lvm, SHORT, num_simulations=6, like=x),
        lambda lvm, x: sbc(lvm, 6, 4),
        lambda lvm, x: tarp(lvm, 6, 4, like=x),
        lambda lvm, x: vsbc(lambda: around(lvm), x, 2, 4, fit_options={"steps": 2}),
    ],
    ids=[
        "simulate",
        "simulate like",
        "ais",
        "bdmc",
        "bdmc like",
        "sbc",
        "tarp",
        "vsbc",
    ],
)
def test_buffers_and_modes_are_restored(act):
    lvm = Noisy()
    before = {n: v.clone() for n, v in lvm.state_dict().items()}
    modes = [m.training for m in lvm.modules()]
    act(lvm, torch.randn(5, 4))
    assert all(torch.equal(before[n], v) for n, v in lvm.state_dict().items())
    assert modes == [m.training for m in lvm.modules()]


def around(lvm):
    """A fresh guide for a shared model whose parameters are fixed."""
    lvm.requires_grad_(False)
    return vilvm.Pair(lvm.model, AutoMultivariateNormal(lvm.model))


def test_features_hold_own_data_not_shared_ones():
    def model(batch):
        x, scale = batch
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(batch):
        x, scale = batch
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(x / (1 + scale**2), scale / (1 + scale**2).sqrt())
            )

    found = tarp(
        vilvm.Pair(model, guide),
        100,
        19,
        like=(torch.zeros(10), torch.tensor(0.5)),
        false_alarm=1e-6,
    )
    assert found.ranks.shape == (100,)
    assert found.finding.severity == Severity.OK
