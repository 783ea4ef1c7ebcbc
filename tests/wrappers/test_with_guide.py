"""A stochastic guide fitted to a frozen model; its bound is compared with the exact evidence."""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal

import vilvm
from vilvm.models.linear_autoencoder import LinearAutoencoder
from vilvm.networks import mlp
from vilvm.priors import fit_prior
from vilvm.testing import check_lvm
from vilvm.wrappers import fit_guide, with_guide, with_prior


@pytest.fixture(scope="module")
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(600, 2, generator=generator) @ (
        2 * torch.randn(2, 6, generator=generator)
    ) + torch.randn(600, 6, generator=generator)


@pytest.fixture(scope="module")
def trained(x):
    torch.manual_seed(0)
    lvm = LinearAutoencoder(6, 2).start_at(x.mean(0))
    vilvm.fit(lvm, x, steps=500, optimizer=partial(torch.optim.Adam, lr=0.02))
    return lvm


@pytest.fixture
def auto(trained):
    torch.manual_seed(0)
    return copy.deepcopy(trained)


@pytest.mark.slow
def test_auto_encoder_becomes_a_model_with_evidence(auto, x):
    prior = fit_prior(auto, x, "full")
    lvm = with_guide(with_prior(auto, prior), mlp(6, (), 4))
    before = {n: v.clone() for n, v in lvm.lvm.state_dict().items()}
    decaying = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=1500)
    vilvm.fit(
        lvm,
        x,
        steps=1500,
        optimizer=partial(torch.optim.Adam, lr=0.05),
        scheduler=decaying,
    )
    assert all(torch.equal(before[n], v) for n, v in lvm.lvm.state_dict().items())
    assert {n.split(".")[0] for n, p in lvm.named_parameters() if p.requires_grad} == {
        "encoder"
    }
    # z ~ N(m, S), x ~ N(U z + b, I): x ~ N(U m + b, U S Uᵀ + I).
    z = prior.distribution()
    cov = auto.U @ z.covariance_matrix @ auto.U.T + torch.eye(6)
    truth = (
        MultivariateNormal(auto.U @ z.mean + auto.b, cov).log_prob(x).detach().double()
    )
    bounds = vilvm.evaluate(lvm, x, num_samples=2000).bounds
    assert ((bounds["iwae"].values - truth) / bounds["iwae"].errors).abs().max() < 5
    # The codes' covariance is not diagonal, and the guide's is, so a gap stays; it is small, and
    # never negative.
    gap = truth.mean().item() - bounds["elbo"].mean
    assert -5 * bounds["elbo"].mc_se < gap < 0.5


@pytest.mark.parametrize(
    "kind", ["mixture", pytest.param("flow", marks=pytest.mark.slow)]
)
def test_fit_guide_finds_latent_and_plate(auto, x, kind):
    model = with_prior(auto, fit_prior(auto, x, kind, components=2, steps=20))
    lvm, fitted = fit_guide(model, x, hidden=(16,), epochs=20, batch_size=100)
    assert fitted.steps == 120
    started, _ = fit_guide(model, x, hidden=(16,), epochs=1, batch_size=100, lr=1e-9)
    start = vilvm.evaluate(started, x, num_samples=50).bounds["elbo"]
    end = vilvm.evaluate(lvm, x, num_samples=50).bounds["elbo"]
    assert end.mean > start.mean + 5 * (start.mc_se**2 + end.mc_se**2) ** 0.5
    assert vilvm.log_weights(lvm, x, 2).log_priors["z"].shape == (2, 600)


def test_fit_guide_error_names_what_is_missing(auto, x):
    with pytest.raises(
        vilvm.ContractError, match=r"prior of latent 'z' is flat.*fit_prior, with_prior"
    ):
        fit_guide(auto, x)
    with pytest.raises(ValueError, match="fit_guide: epochs"):
        fit_guide(with_prior(auto, fit_prior(auto, x)), x, epochs=0)

    class Two(torch.nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    with pytest.raises(
        vilvm.ContractError,
        match=r"for 500 data its latents have shapes \{'z': \(500,\)\}",
    ):
        fit_guide(Two(), x)


@pytest.mark.slow
def test_around_an_own_guide_it_keeps_the_contract(x):
    def tiny():
        auto = LinearAutoencoder(6, 2)
        return with_guide(
            with_prior(auto, fit_prior(auto, x)), mlp(6, (8,), 4), around=True
        ), x[:5]

    check_lvm(tiny)


def test_a_new_guide_starts_around_the_codes(auto, x):
    model = with_prior(auto, fit_prior(auto, x))
    started, _ = fit_guide(model, x, epochs=1, lr=1e-9)
    codes = vilvm.posterior_mean(auto, x)["z"]
    torch.testing.assert_close(
        vilvm.posterior_mean(started, x)["z"], codes, rtol=1e-4, atol=1e-4
    )
    draws = vilvm.posterior(started, x, 200)["z"]
    expected = codes[:500].std(0) * torch.tensor(-2.0).exp()
    torch.testing.assert_close(draws.std(0).mean(0), expected, rtol=0.02, atol=0)


def test_the_given_model_does_not_change(auto):
    with_guide(auto, mlp(6, (), 4))
    assert all(p.requires_grad for p in auto.parameters())


def test_the_frozen_part_stays_in_evaluation_mode(auto):
    lvm = with_guide(
        auto, torch.nn.Sequential(torch.nn.Dropout(), mlp(6, (), 4))
    ).train()
    assert lvm.encoder.training
    assert not lvm.lvm.training


def test_flat_prior_never_has_a_bound(auto, x):
    result = vilvm.evaluate(with_guide(auto, mlp(6, (), 4)), x, num_samples=3)
    with pytest.raises(
        KeyError, match="prior of latent 'z' is flat, which is not a density"
    ):
        result.bounds["elbo"]


def test_an_encoder_of_the_wrong_size(auto, x):
    with pytest.raises(
        vilvm.ContractError, match="encoder returns 3 numbers per datum"
    ):
        vilvm.evaluate(with_guide(auto, mlp(6, (), 3)), x)
