"""Fitted priors, compared with closed forms, and models that use them."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm.guides import delta, flat_prior
from vilvm.models.autoencoder import Autoencoder
from vilvm.models.ppca import PPCA
from vilvm.priors import fit_prior
from vilvm.wrappers import with_prior


class Identity(torch.nn.Module):
    """An auto-encoder whose code is the datum."""

    def __init__(self, dim=3):
        super().__init__()
        self.dim, self.one = dim, torch.nn.Parameter(torch.ones(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", flat_prior(self.dim))
            pyro.sample("x", dist.Normal(self.one * z, 0.1).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", delta(x))


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2500, 3, generator=generator) @ torch.randn(
        3, 3, generator=generator
    ) + torch.tensor([1.0, 0.0, -2.0])


def test_a_gaussian_has_the_moments_of_the_codes(x):
    full, diagonal = (
        fit_prior(Identity(), x, kind).distribution() for kind in ("full", "diagonal")
    )
    cov = torch.cov(x.T, correction=0)
    for fitted in (full, diagonal):
        torch.testing.assert_close(fitted.mean, x.mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            fitted.variance, cov.diagonal(), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(full.covariance_matrix, cov, rtol=1e-3, atol=1e-3)


def test_a_mixture_finds_two_clusters(x):
    centres = torch.tensor([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0]])
    picked = (torch.rand(len(x)) < 0.3).long()
    fitted = fit_prior(
        Identity(),
        centres[picked] + 0.5 * torch.randn(len(x), 3),
        "mixture",
        components=2,
    ).distribution()
    order = fitted.component_distribution.mean[:, 0].argsort()
    torch.testing.assert_close(
        fitted.component_distribution.mean[order], centres.flip(0), rtol=0, atol=0.1
    )
    share = fitted.mixture_distribution.probs[order][0].item()
    assert abs(share - picked.float().mean().item()) < 1e-3
    more = fit_prior(Identity(), x, "mixture", components=3).distribution()
    assert (
        more.log_prob(x).mean()
        > fit_prior(Identity(), x, "full").distribution().log_prob(x).mean() - 1e-3
    )


def test_draws_use_the_prior_and_the_decoder(x):
    lvm = with_prior(Identity(), fit_prior(Identity(), x, "full"))
    torch.manual_seed(0)
    drawn = vilvm.sample(lvm, 4000)
    error = (x.var(0) / 4000 + x.var(0) / 2500).sqrt()
    assert ((drawn["z"].mean(0) - x.mean(0)).abs() < 5 * error).all()
    assert ((drawn["x"] - drawn["z"]).std(0) - 0.1).abs().max() < 5 * 0.1 / 8000**0.5


@pytest.fixture(scope="module")
def banana():
    """Codes (u, u² + 0.3 v) with known density, and 2,000 test codes."""
    u, v = torch.randn(2, 6000, generator=torch.Generator().manual_seed(0))
    codes = torch.stack([u, u.square() + 0.3 * v], 1)
    return codes[:4000], codes[4000:]


@pytest.fixture(scope="module")
def bent(banana):
    return fit_prior(Identity(2), banana[0], "flow", steps=600)


@pytest.mark.slow
def test_a_flow_fits_a_curved_density(banana, bent):
    train, new = banana
    truth = dist.Normal(0.0, 1.0).log_prob(new[:, 0]) + dist.Normal(
        new[:, 0].square(), 0.3
    ).log_prob(new[:, 1])
    gap = truth - bent.distribution().log_prob(new)
    assert -5 * gap.std().item() / len(new) ** 0.5 < gap.mean().item() < 0.1
    full = fit_prior(Identity(2), train, "full").distribution().log_prob(new)
    assert (truth - full).mean().item() > 0.5
    assert not any(p.requires_grad for p in bent.parameters())


@pytest.mark.slow
def test_flow_draws_follow_its_density(banana, bent):
    torch.manual_seed(0)
    drawn = bent.distribution().sample((4000,))
    # Under its own draws the mean log-density is −entropy, and nearly so on the data that it fits.
    # This fails if a flow samples in the wrong direction.
    scores = [bent.distribution().log_prob(z) for z in (drawn, banana[1])]
    error = sum(s.var() / len(s) for s in scores) ** 0.5
    assert abs(scores[0].mean() - scores[1].mean()) < 5 * error + 0.05
    residual = drawn[:, 1] - drawn[:, 0].square()
    assert residual.std().item() == pytest.approx(0.3, abs=0.1)


def test_a_flow_needs_two_dimensions():
    with pytest.raises(
        ValueError,
        match="flow needs a latent of two dimensions or more; use a mixture",
    ):
        fit_prior(Identity(1), torch.randn(50, 1), "flow")


@pytest.mark.parametrize("kind", ["diagonal", "full", "mixture"])
def test_a_prior_is_scored_in_the_weights(kind, x):
    prior = fit_prior(Identity(), x, kind, components=2)
    weights = vilvm.log_weights(with_prior(Identity(), prior), x[:7], 4)
    torch.testing.assert_close(
        weights.log_priors["z"], prior.distribution().log_prob(x[:7]).expand(4, 7)
    )


@pytest.mark.slow
def test_refitting_a_correct_prior_gains_nothing():
    torch.manual_seed(0)
    x = torch.randn(3000, 2) @ (3 * torch.randn(2, 8)) + 0.5 * torch.randn(3000, 8)
    lvm = PPCA(8, 2).maximise(x)
    other = with_prior(lvm, fit_prior(lvm, x, "full"))
    bounds = [
        vilvm.evaluate(m, x, num_samples=100).bounds["elbo"].values
        for m in (lvm, other)
    ]
    gained = bounds[1] - bounds[0]
    # The aggregated posterior is N(0, I) up to its 3,000 draws, whose fit can gain some (2 + 3) /
    # 2 / 3000 nats.
    assert abs(gained.mean().item()) < 5 * gained.std().item() / 3000**0.5 + 2e-3


def test_a_degenerate_guide_stays_one(x):
    lvm = with_prior(Identity(), fit_prior(Identity(), x, "full"))
    with pytest.raises(vilvm.ContractError, match="puts latent 'z' on one point"):
        vilvm.evaluate(lvm, x, bounds="iwae")


def test_a_state_dict_holds_the_prior(x):
    first = with_prior(Identity(), fit_prior(Identity(), x, "mixture", components=2))
    second = with_prior(
        Identity(), fit_prior(Identity(), 2 * x, "mixture", components=2)
    )
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(
        first.prior.distribution().log_prob(x), second.prior.distribution().log_prob(x)
    )


def two(x):
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        v = pyro.sample("v", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(v + u[..., None], 1.0).to_event(1), obs=x)


def two_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(x[:, 0], 1.0))
        pyro.sample("v", dist.Normal(x, 1.0).to_event(1))


def test_the_latent_is_named_where_there_are_several(x):
    lvm = vilvm.Pair(two, two_guide)
    assert fit_prior(lvm, x, latent="v").latent == "v"
    for latent, message in (
        (None, r"latents are \['u', 'v'\]; select one of them"),
        ("w", "select one of them"),
        ("u", "one vector for each datum"),
    ):
        with pytest.raises(vilvm.ContractError, match=message):
            fit_prior(lvm, x, latent=latent)


def test_unusable_codes_are_refused(x):
    with pytest.raises(ValueError, match="codes are all the same, or not finite"):
        fit_prior(Identity(), torch.ones(30, 3), "full")
    with pytest.raises(
        ValueError, match="full prior of 3 dimensions needs at least 4 data; got 3"
    ):
        fit_prior(Identity(), x[:3], "full")


def test_prior_of_a_shared_latent_is_refused():
    def model(x):
        with pyro.plate("components", 4):
            means = pyro.sample("means", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(means[0], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("components", 4):
            pyro.sample("means", dist.Normal(torch.zeros(4, 3), 1.0).to_event(1))

    with pytest.raises(vilvm.ContractError, match="latent 'means' has shape"):
        fit_prior(vilvm.Pair(model, guide), torch.zeros(30, 3))


def test_bad_arguments(x):
    with pytest.raises(
        ValueError,
        match=r"unknown kind 'cauchy'; choose from \['diagonal', 'full', 'mixture', 'flow'\]",
    ):
        fit_prior(Identity(), x, "cauchy")
    with pytest.raises(
        ValueError, match="mixture prior of 3 dimensions needs at least 10 data; got 4"
    ):
        fit_prior(Identity(), x[:4], "mixture")
    other = with_prior(Autoencoder(6, 2), fit_prior(Identity(), x))
    with pytest.raises(
        vilvm.ContractError,
        match=r"prior is of vectors of shape \(3,\), and latent 'z' has shape \(2,\)",
    ):
        vilvm.sample(other, 3)
