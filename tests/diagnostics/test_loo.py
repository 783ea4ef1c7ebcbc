"""PSIS leave-one-out prediction against its closed form in a conjugate model."""

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_base import from_dict
from arviz_stats import loo_approximate_posterior

import vilvm
from vilvm._runtime.random import seeded
from vilvm.diagnostics import Severity, loo
from vilvm.models.ppca import PPCA
from vilvm.weights import find_layout


def pair(scale=1.0, shift=0.0, num_data=20):
    """A normal mean with prior N(0, 1), and its posterior as guide, scaled and shifted.

    The shift is in posterior standard deviations.
    """

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        sd = (1 + len(x)) ** -0.5
        pyro.sample("mu", dist.Normal(x.sum() / (1 + len(x)) + shift * sd, scale * sd))

    return vilvm.Pair(model, guide)


def exact(x):
    """log p(x_i | the others): normal with the others' posterior mean.

    Its variance is the variance of that posterior plus one.
    """
    n = len(x) - 1
    return (
        dist.Normal((x.sum() - x) / (1 + n), (1 + 1 / (1 + n)) ** 0.5)
        .log_prob(x)
        .double()
    )


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.3, 0.4)])
def test_loo_equals_the_closed_form_for_any_guide(scale, shift):
    x = torch.randn(20) + 0.5
    runs = torch.stack(
        [
            loo(pair(scale, shift), x, num_samples=4000, seed=seed).elpd_i
            for seed in range(8)
        ]
    )
    error = runs.std(0) / 8**0.5
    assert (
        (runs.mean(0) - exact(x)).abs() < 6 * error + 2e-3
    ).all()  # 20 data, seven degrees of freedom; smoothing adds a bias
    found = loo(pair(scale, shift), x)
    assert found.elpd == pytest.approx(exact(x).sum().item(), abs=0.05)
    n, variance = len(x), 1 / (1 + len(x))
    fitted = (
        dist.Normal(x.sum() * variance, (1 + variance) ** 0.5).log_prob(x).sum().item()
    )
    assert found.p == pytest.approx(fitted - exact(x).sum().item(), abs=0.1)
    assert found.p == pytest.approx(n / (1 + n), abs=0.5)
    assert found.finding.severity == Severity.OK


def test_guide_without_weights_predicts_wrongly():
    """Without the weights log p − log q, a wrong guide predicts wrongly."""
    x = torch.randn(20) + 0.5
    lvm = pair(1.0, 2.0)
    weights = vilvm.log_weights(lvm, x, 4000)
    naive = (
        (-((-weights.log_likelihood).logsumexp(0) - torch.tensor(4000.0).log()))
        .sum()
        .item()
    )
    assert abs(naive - exact(x).sum().item()) > 5 * abs(
        loo(lvm, x).elpd - exact(x).sum().item()
    )


def test_loo_equals_arviz_on_the_same_draws():
    x = torch.randn(12)
    lvm = pair(1.2, 0.3)
    layout = find_layout(lvm, x)
    with torch.no_grad(), seeded(0):
        weights = vilvm.log_weights(lvm, x, 10_000, layout=layout)
    log_p = (weights.log_likelihood.sum(1) + weights.log_prior).numpy()
    tree = from_dict(
        {
            "posterior": {"mu": weights.latents["mu"].numpy()[None]},
            "log_likelihood": {"x": weights.log_likelihood.numpy()[None]},
        }
    )
    theirs = loo_approximate_posterior(
        tree, log_p, weights.log_guide.numpy(), pointwise=True
    )
    ours = loo(lvm, x)
    assert ours.elpd == pytest.approx(float(theirs.elpd), abs=0.02)
    assert ours.se == pytest.approx(float(theirs.se), rel=0.1)
    assert ours.elpd_i.numpy() == pytest.approx(theirs.elpd_i.values, abs=0.02)


def test_too_narrow_guide_makes_prediction_critical():
    found = loo(pair(0.3), torch.randn(20))
    assert found.finding.severity == Severity.CRITICAL
    assert found.finding.about == "posterior"


def test_data_independent_of_latents_keep_their_density():
    def model(x):
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.randn(5)
    found = loo(
        vilvm.Pair(model, lambda x: pyro.sample("mu", dist.Normal(0.0, 1.0))), x
    )
    torch.testing.assert_close(
        found.elpd_i, dist.Normal(0.0, 1.0).log_prob(x).double(), rtol=1e-5, atol=1e-5
    )


def test_an_outlier_is_named():
    x = torch.cat([torch.randn(7), torch.tensor([12.0])])
    found = loo(pair(), x)
    assert found.finding.severity == Severity.WARNING
    assert "(7 the worst)" in found.finding.verdict
    assert found.k.argmax() == 7


def test_local_latents_are_refused():
    with pytest.raises(vilvm.ContractError, match="see evaluate"):
        loo(PPCA(4, 2), torch.randn(5, 4))


def test_site_outside_the_plate_is_refused():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("total", dist.Normal(mu, 1.0), obs=x.mean())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    with pytest.raises(vilvm.ContractError, match="total"):
        loo(vilvm.Pair(model, pair().guide), torch.randn(5))


def test_all_data_in_one_term_are_refused():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mu, torch.ones(len(x))).to_event(1), obs=x)

    with pytest.raises(vilvm.ContractError, match="no datum can be left out"):
        loo(vilvm.Pair(model, pair().guide), torch.randn(5))


def test_zero_likelihood_gives_no_nan():
    """x uniform on [0, u]: draws of u below the largest datum give it probability zero."""

    def model(x):
        u = pyro.sample("u", dist.Uniform(0.0, 4.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Uniform(0.0, u, validate_args=False), obs=x)

    lvm = vilvm.Pair(model, lambda x: pyro.sample("u", dist.Uniform(0.0, 4.0)))
    x = torch.tensor([0.5, 1.0, 2.0])
    found = loo(lvm, x, num_samples=50_000)
    # By hand: p(x_i | others) = ∫ u⁻³ 1(u > max x) du / ∫ u⁻² 1(u > max of the others) du, over u
    # < 4.
    largest = torch.tensor([2.0, 2.0, 1.0])
    expected = ((2.0**-2 - 4.0**-2) / 2 / (1 / largest - 1 / 4)).log()
    assert found.elpd_i.isfinite().all()
    assert (found.elpd_i - expected).abs().max() < 0.05


def test_data_sharing_a_summed_latent_are_refused():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        c = pyro.sample(
            "c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"}
        )
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu + c, 1.0), obs=x)

    with pytest.raises(
        vilvm.ContractError, match="site 'x' of Pair depends on a latent that is summed"
    ):
        loo(vilvm.Pair(model, pair().guide), torch.randn(5))


def test_jointly_impossible_data_are_critical():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Uniform(mu - 1, mu + 1, validate_args=False), obs=x)

    found = loo(
        vilvm.Pair(model, lambda x: pyro.sample("mu", dist.Normal(0.0, 1.0))),
        torch.tensor([0.0, 2.5]),
    )
    assert found.joint_k == float("inf")
    assert found.finding.severity == Severity.CRITICAL


def test_result_does_not_depend_on_blocks(monkeypatch):
    x = torch.randn(20)
    whole = loo(pair(1.2, 0.3), x, num_samples=2000)
    module = sys.modules[
        "vilvm.diagnostics.loo"
    ]  # the module, which the function of the same name hides
    monkeypatch.setattr(module, "_KEPT", 14_000)
    monkeypatch.setattr(module, "_WORKED", 6_000)
    parts = loo(pair(1.2, 0.3), x, num_samples=2000)
    torch.testing.assert_close(parts.elpd_i, whole.elpd_i)
    torch.testing.assert_close(parts.k, whole.k)
