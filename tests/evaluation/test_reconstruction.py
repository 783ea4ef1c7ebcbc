"""Reconstructions of models with a known code."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm.evaluation import psnr, reconstruct, squared_error
from vilvm.models.denoising_autoencoder import DenoisingAutoencoder
from vilvm.models.vae import VAE


def test_reconstruction_decodes_the_posterior_mean():
    lvm, x = VAE(data_dim=6, latent_dim=2), torch.bernoulli(torch.full((2500, 6), 0.5))
    expected = lvm.decoder(lvm.encoder(x)[:, :2]).sigmoid().detach()
    torch.testing.assert_close(reconstruct(lvm, x), expected)
    torch.testing.assert_close(
        squared_error(lvm, x).values,
        (x - expected).double().square().sum(1),
        rtol=1e-5,
        atol=1e-5,
    )
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


def test_pairs_are_refused_with_advice():
    lvm, pairs = (
        DenoisingAutoencoder(6, 2, hidden=(8,)),
        (torch.zeros(3, 6), torch.ones(3, 6)),
    )
    with pytest.raises(
        vilvm.ContractError,
        match=r"batch is a tuple, not one tensor; for pairs \(corrupted, clean\), pass only "
        "the corrupted",
    ):
        reconstruct(lvm, pairs)
    with pytest.raises(vilvm.ContractError, match="data are not one tensor"):
        squared_error(lvm, pairs)


def test_psnr_uses_the_mean_over_pictures():
    clean = torch.zeros(4, 100)
    restored = torch.tensor([0.0, 0.1, 0.2, 0.3])[:, None].expand(
        4, 100
    )  # the first picture has no error
    found = psnr(restored, clean, peak=2.0)
    mse = torch.tensor([0.0, 0.01, 0.04, 0.09]).double()
    assert found.value == pytest.approx(
        10 * math.log10(4 / mse.mean().item()), rel=1e-6
    )
    assert found.se == pytest.approx(
        10 / math.log(10) * mse.std().item() / 2 / mse.mean().item(), rel=1e-6
    )
    assert psnr(clean, clean).value == math.inf
    with pytest.raises(
        ValueError, match=r"restored has shape \(4, 100\), clean \(3, 100\)"
    ):
        psnr(clean, clean[:3])
