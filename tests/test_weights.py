"""log_weights, sample, posterior and predict on pairs of every shape."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal

import vilvm
from models.vae import VAE
from vilvm.weights import layout


def schools(batch):
    y, sigma = batch
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


SCHOOLS = (torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]), torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18]))


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal])
def test_autoguides_are_guides(auto):
    lvm = vilvm.Pair(schools, auto(schools))
    weights = vilvm.log_weights(lvm, SCHOOLS, 6, chunk=4)
    assert weights.log_weight.shape == (6,)
    assert weights.log_likelihood.shape == (6, 8)
    assert weights.log_priors["theta"].shape == (6, 8)
    assert weights.log_priors["mu"].shape == (6,)
    drawn = vilvm.posterior(lvm, SCHOOLS, 3)
    assert {n: tuple(v.shape) for n, v in drawn.items()} == {"mu": (3,), "tau": (3,), "theta": (3, 8)}
    assert len(pyro.get_param_store()) == 0


def test_the_density_of_an_autoguide_includes_its_jacobian():
    lvm = vilvm.Pair(schools, AutoNormal(schools))
    layout(lvm, SCHOOLS)  # an autoguide makes its parameters on its first call
    torch.manual_seed(1)
    weights = vilvm.log_weights(lvm, SCHOOLS, 4)
    torch.manual_seed(1)
    drawn = vilvm.posterior(lvm, SCHOOLS, 4)["tau"]
    # The autoguide is normal in log tau, so q(tau) is log-normal.
    truth = dist.LogNormal(lvm.guide.locs.tau, lvm.guide.scales.tau).log_prob(drawn)
    ours = weights.log_guides["tau"] + weights.log_guides["tau_unconstrained"]
    torch.testing.assert_close(ours, truth.double(), rtol=1e-4, atol=1e-4)


def test_no_data_plate():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    x = torch.tensor([0.3, -1.0])
    weights = vilvm.log_weights(vilvm.Pair(model, guide), x, 5)
    truth = dist.Normal(torch.zeros(2), 2**0.5).log_prob(x).sum()
    torch.testing.assert_close(weights.log_weight, truth.double().expand(5), rtol=1e-6, atol=1e-5)


def test_several_latents_and_a_plate_inside():
    def model(x):
        with pyro.plate("series", len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            with pyro.plate("time", 3, dim=-2):
                v = pyro.sample("v", dist.Normal(u, 1.0))
                pyro.sample("x", dist.Normal(v, 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("series", len(x), dim=-1):
            pyro.sample("u", dist.Normal(x.mean(1) / 2, 0.8))
            with pyro.plate("time", 3, dim=-2):
                pyro.sample("v", dist.Normal(x.T / 2, 0.8))

    x = torch.randn(4, 3)
    lvm = vilvm.Pair(model, guide)
    weights = vilvm.log_weights(lvm, x, 6)
    assert weights.log_weight.shape == (6, 4)
    assert layout(lvm, x).data_plate == "series"
    z = vilvm.posterior(lvm, x, 6)
    assert z["u"].shape == (6, 4)
    assert z["v"].shape == (6, 3, 4)
    by_hand = vilvm.log_weights(vilvm.Pair(pyro.poutine.condition(model, {}), guide), x, 6)
    assert by_hand.log_weight.shape == (6, 4)


def test_terms_are_the_densities_of_the_draws():
    lvm = VAE(data_dim=6, latent_dim=2, encoder_hidden=(8,), decoder_hidden=(8,))
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    torch.manual_seed(3)
    weights = vilvm.log_weights(lvm, x, 5)
    torch.manual_seed(3)
    z = vilvm.posterior(lvm, x, 5)["z"]
    torch.testing.assert_close(weights.log_priors["z"], dist.Normal(0, 1).log_prob(z).sum(-1))
    logits = lvm.decoder(z)
    torch.testing.assert_close(weights.log_likelihoods["x"], dist.Bernoulli(logits=logits).log_prob(x).sum(-1))
    mean, log_variance = lvm.encoder(x).chunk(2, -1)
    torch.testing.assert_close(weights.log_guides["z"], dist.Normal(mean, (log_variance / 2).exp()).log_prob(z).sum(-1))
    torch.testing.assert_close(weights.log_weight, weights.log_likelihood + weights.log_prior - weights.log_guide)


def test_one_datum_and_one_sample():
    lvm = VAE(data_dim=6, latent_dim=2)
    assert vilvm.log_weights(lvm, torch.zeros(1, 6)).log_weight.shape == (1, 1)


def test_mask_leaves_data_out():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.mask(mask=torch.tensor([True, False, True])):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    weights = vilvm.log_weights(vilvm.Pair(model, guide), torch.ones(3), 4)
    assert (weights.log_likelihood[:, 1] == 0).all()
    assert (weights.log_likelihood[:, 0] != 0).all()


def test_gradients_flow_to_both_halves():
    lvm = VAE(data_dim=6, latent_dim=2)
    vilvm.log_weights(lvm, torch.zeros(4, 6), 3).log_weight.mean().backward()
    assert all(p.grad is not None for p in lvm.parameters())


def test_sample_is_the_simulator():
    class Shifted(torch.nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(2.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(2.0, 1.0))

    torch.manual_seed(0)
    drawn = vilvm.sample(Shifted(), 4000)
    assert drawn["x"].shape == drawn["z"].shape == (4000,)
    assert abs(drawn["x"].mean() - 2) < 5 * (2 / 4000) ** 0.5
    assert abs(drawn["x"].var() - 2) < 5 * 2 * (2 / 4000) ** 0.5
    torch.testing.assert_close(vilvm.sample(Shifted(), 3, mean=True)["x"].shape, torch.Size([3]))


def test_sample_like_a_batch_draws_whole_batches():
    drawn = vilvm.sample(vilvm.Pair(schools, AutoNormal(schools)), 5, like=SCHOOLS)
    assert drawn["y"].shape == (5, 8)
    assert drawn["mu"].shape == (5,)


def test_sample_without_a_batch_says_what_is_missing():
    with pytest.raises(vilvm.ContractError, match="like="):
        vilvm.sample(vilvm.Pair(schools, AutoNormal(schools)), 5)


def test_predict_is_the_decoder():
    lvm = VAE(data_dim=6, latent_dim=2)
    z = torch.randn(4, 2)
    torch.testing.assert_close(vilvm.predict(lvm, {"z": z})["x"], lvm.decoder(z).sigmoid().detach())


def test_posterior_mean_is_the_guides():
    lvm = VAE(data_dim=6, latent_dim=2)
    x = torch.zeros(4, 6)
    torch.testing.assert_close(vilvm.posterior_mean(lvm, x)["z"], lvm.encoder(x)[:, :2].detach())


def test_param_statements_live_in_the_pair():
    network = torch.nn.Linear(1, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.module("network", network)
            pyro.sample("x", dist.Normal(network(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, scale))

    lvm = vilvm.Pair(model, guide)
    vilvm.fit(lvm, torch.randn(20), steps=3)
    names = {n for n, _ in lvm.named_parameters()}
    assert names == {"pyro_params.scale", "pyro_params.network$$$weight", "pyro_params.network$$$bias"}
    assert any(p is network.weight for p in lvm.parameters())
    assert len(pyro.get_param_store()) == 0
