"""Means under the guide: closed forms of automatic guides, and draws with their errors."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import biject_to, constraints

import vilvm
from vilvm.weights.guide_means import expectation

Y = torch.tensor([1.0, 3.0, 4.0])


def model(y):
    pyro.sample("real", dist.Normal(1.0, 5.0))
    pyro.sample("positive", dist.HalfCauchy(1.0))
    pyro.sample("interval", dist.Uniform(2.0, 5.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


def exact(support, loc, scale):
    """E f(u) by adaptive quadrature."""
    f = biject_to(support)

    def integrand(t):
        return (
            norm.pdf(t) * f(torch.tensor(loc + scale * t, dtype=torch.float64)).item()
        )

    return quad(integrand, -12, 12, limit=200)[0]


@pytest.mark.parametrize(
    "support",
    [
        constraints.real,
        constraints.positive,
        constraints.greater_than(2.0),
        constraints.less_than(3.0),
        constraints.unit_interval,
        constraints.interval(-2.0, 5.0),
    ],
    ids=str,
)
@pytest.mark.parametrize(("loc", "scale"), [(0.3, 0.5), (-1.0, 2.0), (2.0, 1e-6)])
def test_expectation_equals_quadrature(support, loc, scale):
    given = torch.tensor([loc, scale], dtype=torch.float64)
    found = expectation(biject_to(support), given[0], given[1])
    assert found.item() == pytest.approx(exact(support, loc, scale), rel=1e-7)


def test_wide_sigmoid_is_a_step():
    """E σ(u) tends to Φ(μ/σ), and π σ²/6 · φ'' is the first correction, below 1e-4 here."""
    loc, scale = torch.tensor([40.0]).double(), torch.tensor([40.0]).double()
    found = expectation(biject_to(constraints.unit_interval), loc, scale)
    assert found.item() == pytest.approx(norm.cdf(1.0), abs=1e-3)
    assert expectation(
        biject_to(constraints.unit_interval), 0 * loc, scale
    ).item() == pytest.approx(0.5, abs=1e-9)


def test_unknown_transforms_have_no_expectation():
    one = torch.ones(2).double()
    for support in (
        constraints.simplex,
        constraints.corr_cholesky,
    ):
        assert expectation(biject_to(support), one, one) is None


@pytest.mark.parametrize(
    "family",
    [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal],
)  # fmt: skip
def test_autoguide_means_are_exact(family):
    torch.manual_seed(0)
    lvm = vilvm.Pair(model, family(model, init_scale=0.7))
    first, second = (vilvm.posterior_mean(lvm, Y) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert all(not error.any() for error in first.errors.values())
    draws = vilvm.posterior(lvm, Y, 20_000)
    assert first["z"].shape == (3, 2)
    for name, mean in first.items():
        error = draws[name].std(0) / 20_000**0.5
        assert ((draws[name].mean(0) - mean).abs() < 6 * error).all(), name
    loc, scale = lvm.guide._loc_scale() if family is not AutoNormal else (None, None)
    if loc is not None:  # the second component of the vector
        expected = (loc[1] + scale[1] ** 2 / 2).exp()
        torch.testing.assert_close(first["positive"], expected)


def test_means_of_autonormal_equal_closed_forms():
    lvm = vilvm.Pair(model, AutoNormal(model, init_scale=0.5))
    means = vilvm.posterior_mean(lvm, Y)
    guide = lvm.guide
    for name, support in (
        ("real", constraints.real),
        ("positive", constraints.positive),
        ("interval", constraints.interval(2.0, 5.0)),
    ):
        loc, scale = (getattr(part, name).item() for part in (guide.locs, guide.scales))
        assert means[name].item() == pytest.approx(exact(support, loc, scale), rel=1e-5)
    torch.testing.assert_close(means["z"], guide.locs.z.detach())
    means["z"] += 1  # the parameters are not the means
    assert not torch.equal(means["z"], guide.locs.z)


def test_means_of_a_list_of_autoguides_are_exact():
    guide = AutoGuideList(model)
    guide.append(
        AutoMultivariateNormal(pyro.poutine.block(model, expose=["positive", "z"]))
    )
    guide.append(AutoNormal(pyro.poutine.block(model, hide=["positive", "z"])))
    lvm = vilvm.Pair(model, guide)
    means = vilvm.posterior_mean(lvm, Y)
    assert all(not error.any() for error in means.errors.values())
    draws = vilvm.posterior(lvm, Y, 20_000)
    for name, mean in means.items():
        error = draws[name].std(0) / 20_000**0.5
        assert ((draws[name].mean(0) - mean).abs() < 6 * error).all(), name


def test_point_guide_is_exact():
    lvm = vilvm.Pair(model, AutoDelta(model))
    means = vilvm.posterior_mean(lvm, Y)
    assert torch.equal(means["positive"], vilvm.posterior(lvm, Y)["positive"][0])
    assert all(not error.any() for error in means.errors.values())


def test_flow_has_means_of_draws_with_errors():
    def two(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(b, 1.0), obs=y)

    torch.manual_seed(0)
    lvm = vilvm.Pair(two, AutoIAFNormal(two))
    means = vilvm.posterior_mean(lvm, Y, 2000)
    draws = vilvm.posterior(lvm, Y, 20_000)
    for name, mean in means.items():
        error = means.errors[name]
        assert error.item() == pytest.approx(
            draws[name].std().item() / 2000**0.5, rel=0.15
        )
        other = draws[name].std() / 20_000**0.5
        assert abs(draws[name].mean() - mean) < 6 * (error + other)


def hierarchical(slope, nonlinear=torch.nn.Identity()):  # noqa: B008
    def model(y):
        with pyro.plate("data", len(y)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("y", dist.Normal(b, 1.0), obs=y)

    def guide(y):
        with pyro.plate("data", len(y)):
            a = pyro.sample("a", dist.Normal(y, 1.0))
            pyro.sample("b", dist.Normal(slope * nonlinear(a), 1.0))

    return vilvm.Pair(model, guide)


def test_mean_of_a_dependent_latent_has_its_error():
    torch.manual_seed(0)
    means = vilvm.posterior_mean(hierarchical(0.5), Y)
    torch.testing.assert_close(means["a"], Y)
    assert not means.errors["a"].any()
    # E[b | a] = a/2 has standard deviation 1/2
    assert means.errors["b"].tolist() == pytest.approx([0.5 / 1000**0.5] * 3, rel=0.1)
    assert ((means["b"] - 0.5 * Y).abs() < 5 * means.errors["b"]).all()


def test_mean_that_two_draws_may_share_is_not_exact():
    """relu(a) is zero in half of all draws."""
    torch.manual_seed(0)
    means = vilvm.posterior_mean(hierarchical(1.0, torch.relu), torch.zeros(1))
    expected = (2 * torch.pi) ** -0.5
    assert means.errors["b"].item() > 0
    assert abs(means["b"].item() - expected) < 5 * means.errors["b"].item()


def test_mean_given_a_discrete_draw_is_not_exact():
    def model(y):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        z = pyro.sample("z", dist.Normal(k, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        k = pyro.sample("k", dist.Bernoulli(0.98))
        pyro.sample("z", dist.Normal(10 * k, 1.0))

    torch.manual_seed(0)
    means = vilvm.posterior_mean(vilvm.Pair(model, guide), Y, 4000)
    assert means["k"].item() == pytest.approx(0.98)
    assert means.errors["z"].item() == pytest.approx(
        10 * (0.02 * 0.98 / 4000) ** 0.5, rel=0.3
    )
    assert abs(means["z"].item() - 9.8) < 5 * means.errors["z"].item()


def test_gaussian_that_depends_on_a_draw_is_not_taken_for_known():
    """A hand-written auxiliary draw around another draw, under the name of an autoguide's."""

    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(a, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        a = pyro.sample("a", dist.Normal(2.0, 1.0))
        u = pyro.sample(
            "z_unconstrained", dist.Normal(a, 1.0), infer={"is_auxiliary": True}
        )
        pyro.sample("z", dist.Delta(u))

    torch.manual_seed(0)
    means = vilvm.posterior_mean(vilvm.Pair(model, guide), Y)
    assert means.errors["z"].item() == pytest.approx((2 / 1000) ** 0.5, rel=0.2)
    assert abs(means["z"].item() - 2.0) < 5 * means.errors["z"].item()


def test_mean_of_one_draw_has_no_error():
    assert vilvm.posterior_mean(hierarchical(0.5), Y, 1).errors["b"].isnan().all()
