"""Reconstructions of models whose code is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from models.vae import VAE
from vilvm.evaluation import reconstruct, squared_error


def test_it_is_the_decoder_at_the_posterior_mean():
    lvm, x = VAE(data_dim=6, latent_dim=2), torch.bernoulli(torch.full((2500, 6), 0.5))
    expected = lvm.decoder(lvm.encoder(x)[:, :2]).sigmoid().detach()
    torch.testing.assert_close(reconstruct(lvm, x), expected)
    torch.testing.assert_close(squared_error(lvm, x).values, (x - expected).double().square().sum(1), rtol=1e-5, atol=1e-5)
    assert squared_error(lvm, x).mc_se == 0


def test_several_observations_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(vilvm.ContractError, match="not one site of the batch's shape"):
        reconstruct(vilvm.Pair(model, guide), torch.zeros(3))
