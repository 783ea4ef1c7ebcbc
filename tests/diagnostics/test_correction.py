"""Corrections by importance weights, where the posterior is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm.diagnostics.correction import correction
from vilvm.diagnostics.finding import Severity

X = torch.tensor([1.0, 2.0, 0.5, 1.5])


def pair(mean_shift=0.0, scale=1.0):
    """A normal mean; its guide is the posterior N(4 m̄ / 5, 1 / 5), shifted and scaled.

    The shift is in posterior standard deviations.
    """

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(1.0 + mean_shift * 0.2**0.5, scale * 0.2**0.5))

    return vilvm.Pair(model, guide)


@pytest.mark.parametrize(
    ("shift", "scale"), [(0.0, 1.0), (0.3, 1.0), (0.0, 1.25), (-0.4, 0.85)]
)
def test_shift_and_ratio_are_estimated(shift, scale):
    found = correction(pair(shift, scale), X)
    assert found.names == ("mu",)
    assert abs(found.shift.item() + shift) < 5 * found.shift_se.item() + 1e-6
    assert abs(found.ratio.item() - scale) < 5 * found.ratio_se.item() + 1e-6
    bad = abs(shift) > 0.1 or abs(scale - 1) > 0.1
    assert found.finding.severity == (Severity.WARNING if bad else Severity.OK)
    assert ("mu: the corrected mean differs" in found.finding.verdict) == bad


@pytest.mark.slow
def test_standard_errors_are_those_of_repetition():
    runs = [
        correction(pair(0.3, 1.1), X, num_samples=1000, seed=seed) for seed in range(40)
    ]
    for name in ("shift", "ratio"):
        spread = torch.stack([getattr(r, name) for r in runs]).std()
        stated = torch.stack([getattr(r, f"{name}_se") for r in runs]).mean()
        assert (
            0.6 < spread / stated < 1.5
        )  # 40 runs determine a standard deviation to 11 %


def test_uneven_weights_are_a_warning():
    found = correction(pair(0.0, 0.3), X)
    assert found.uneven.all()
    assert found.finding.severity == Severity.WARNING


def prior_only(*latents, guide):
    """Shared latents on which no datum depends, so that the posterior is the prior."""

    def model(x):
        for name, law in latents:
            pyro.sample(name, law)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return vilvm.Pair(model, guide)


@pytest.mark.parametrize("seed", range(3))
def test_heavy_tail_is_a_warning(seed):
    """Under Student's t with five degrees of freedom, the weighted sd is too small.

    This holds for any number of draws, because its weights have no variance.
    """
    lvm = prior_only(
        ("z", dist.StudentT(5.0)),
        guide=lambda x: pyro.sample("z", dist.Normal(0.0, 1.1)),
    )
    found = correction(lvm, X, seed=seed)  # the true ratio is 1.1 / (5 / 3)^½ = 0.852
    assert found.k.item() > 0.7
    assert found.finding.severity == Severity.WARNING


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "bad"), [(1.0, False), (0.93, False), (0.8, True)])
def test_many_components_within_the_tolerance_raise_no_warning(ratio, bad):
    scale = torch.ones(60)
    scale[17 if bad else slice(None)] = ratio
    lvm = prior_only(
        ("z", dist.Normal(torch.zeros(60), 1.0).to_event(1)),
        guide=lambda x: pyro.sample("z", dist.Normal(0.0, scale).to_event(1)),
    )
    found = correction(lvm, X, num_samples=20_000)
    if bad:
        assert found.finding.severity == Severity.WARNING
        assert found.off[0].nonzero().flatten().tolist() == [17]
        assert "z[17]" in found.finding.verdict
    else:  # joint weights of sixty components may need more draws
        assert not found.off.any()


def test_infinite_components_are_named_constants_left_out():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.deterministic("log_mu", mu.log())
        pyro.deterministic("constant", torch.ones(3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    found = correction(vilvm.Pair(model, pair().guide), X, num_samples=5000)
    assert found.names == ("mu", "log_mu")
    assert found.finding.severity == Severity.WARNING
    assert "not finite in some draw: log_mu" in found.finding.verdict


def correlated(correlation, diagonal):
    """Latents z ∈ R² of each datum with a correlated posterior.

    The guide is that posterior, or its best mean-field approximation.
    """
    prior = torch.tensor([[1.0, correlation], [correlation, 1.0]])
    covariance = torch.linalg.inv(torch.linalg.inv(prior) + torch.eye(2))
    root = torch.linalg.cholesky(covariance)
    narrow = torch.linalg.inv(covariance).diagonal().rsqrt()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), prior))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            mean = x @ covariance
            own = (
                dist.Normal(mean, narrow).to_event(1)
                if diagonal
                else dist.MultivariateNormal(mean, scale_tril=root)
            )
            pyro.sample("z", own)

    return vilvm.Pair(model, guide)


@pytest.mark.slow
def test_each_datum_is_judged_by_its_own_weights():
    x = torch.randn(300, 2)
    good = correction(correlated(0.9, diagonal=False), x)
    assert good.mean.shape == (300, 2)
    assert not good.joint
    assert good.finding.severity == Severity.OK
    bad = correction(correlated(0.9, diagonal=True), x)
    assert bad.finding.severity == Severity.WARNING
    assert "of datum" in bad.finding.verdict


def test_one_bad_datum_is_found_by_its_index():
    lvm = correlated(0.9, diagonal=False)

    def guide(x):
        covariance = torch.linalg.inv(
            torch.linalg.inv(torch.tensor([[1.0, 0.9], [0.9, 1.0]])) + torch.eye(2)
        )
        shift = (x[:, :1] > 50).float() * 0.5
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.MultivariateNormal(x @ covariance + shift, covariance)
            )

    x = torch.randn(120, 2)
    x[77] = 60.0
    found = correction(vilvm.Pair(lvm.model, guide), x)
    assert found.finding.severity == Severity.WARNING
    assert found.index[found.off.any(1)].tolist() == [77]


def test_all_data_count_if_a_latent_is_shared():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mu + 0 * z, 1.0), obs=x)

    wide = torch.ones(15)
    wide[13] = 1.4

    def shared(x):
        pyro.sample("mu", dist.Normal(x.sum() / 16, 0.25))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, wide))

    found = correction(vilvm.Pair(model, shared), torch.randn(15))
    assert len(found.names) == 16
    assert "z[13]" in found.finding.verdict


def given(posterior, guide):
    """A pair with a given posterior, because its datum does not depend on the latent."""

    def model(x):
        pyro.sample("z", posterior)
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return vilvm.Pair(model, lambda x: pyro.sample("z", guide))


@pytest.mark.parametrize(
    "posterior", [dist.StudentT(2.0), dist.Cauchy(0.0, 1.0)], ids=["t2", "cauchy"]
)
def test_exact_guide_without_variance_is_fine(posterior):
    assert (
        correction(given(posterior, posterior), torch.tensor(0.0)).finding.severity
        == Severity.OK
    )


def normals(scale, dim=60):
    loc = torch.zeros(dim)
    return given(dist.Normal(loc, 1.0).to_event(1), dist.Normal(loc, scale).to_event(1))


@pytest.mark.slow
def test_components_within_the_tolerance_raise_no_alarm():
    """The noisiest of sixty components exceeds the tolerance by chance.

    Without a correction for their number, one component in three would raise an alarm.
    """
    severities = [
        correction(
            normals(0.91), torch.tensor(0.0), num_samples=5000, seed=seed
        ).finding.severity
        for seed in range(3)
    ]
    assert max(severities) <= Severity.NOTE
    # All exceed the tolerance by their point estimates.
    assert correction(normals(0.91), torch.tensor(0.0), num_samples=1000).share == 1.0


def test_few_draws_are_undecided_and_reexamined():
    found = correction(pair(0.0, 0.9), X, num_samples=1000)
    assert found.num_samples.item() == 10_000
    assert found.undecided.all()
    assert found.finding.severity == Severity.NOTE
    assert "cannot decide whether" in found.finding.verdict


def test_nothing_to_correct_is_reported():
    def model(x):
        c = pyro.sample(
            "c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"}
        )
        pyro.sample("x", dist.Normal(c.float(), 1.0), obs=x)

    found = correction(
        vilvm.Pair(model, lambda x: None), torch.tensor(0.0), num_samples=1000
    )
    assert found.names == ()
    assert "nothing to correct" in found.finding.verdict


def test_many_components_are_drawn_in_blocks(monkeypatch):
    whole = correction(normals(1.2, 7), torch.tensor(0.0), num_samples=1000)
    monkeypatch.setattr("vilvm.diagnostics._moments.KEPT", 3000)
    monkeypatch.setattr("vilvm.diagnostics._moments._WORKED", 2000)
    parts = correction(normals(1.2, 7), torch.tensor(0.0), num_samples=1000)
    assert parts.names == whole.names
    assert (parts.ratio - 1.2).abs().max() < 6 * parts.ratio_se.max()
    assert len(set(parts.mean[0].tolist())) == 7


def test_per_datum_guide_is_reestimated_on_all_data():
    """The guide refuses a subset of the data, so all data are run again."""
    x = torch.randn(60, 1)
    spread = torch.full((60,), 0.8 * 0.5**0.5)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", 60):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, spread))

    found = correction(vilvm.Pair(model, guide), x)
    assert found.finding.severity == Severity.WARNING
    assert (found.num_samples > 1000).any()


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="false_alarm must be between 0 and 1"):
        correction(pair(), X, false_alarm=2.0)
    with pytest.raises(ValueError, match="at least 1000"):
        correction(pair(), X, num_samples=10)


def test_infinite_component_is_named():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.deterministic("f", 1.0 / (mu > 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    found = correction(vilvm.Pair(model, pair().guide), X, num_samples=1000)
    assert found.undefined.tolist() == [[False, True]]
    assert "1 of 2 components is not finite in some draw: f" in found.finding.verdict


def test_ratios_equal_the_closed_form():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.15 * 0.5**0.5))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    found = correction(vilvm.Pair(model, guide), torch.randn(60))
    assert ((found.ratio - 1.15) / found.ratio_se).abs().max() < 5
    assert (found.shift / found.shift_se).abs().max() < 5
    assert found.finding.severity == Severity.WARNING
