"""The denoising auto-encoder: both likelihoods, and its conditional mean in closed form."""

from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

import vilvm
from vilvm.data import Corrupted, GaussianNoise, PixelErasure
from vilvm.evaluation import reconstruct
from vilvm.models.denoising_autoencoder import DenoisingAutoencoder
from vilvm.testing import check_lvm


@pytest.mark.slow
def test_bernoulli_keeps_the_contract():
    clean = torch.bernoulli(torch.full((5, 6), 0.5))
    lvm = partial(
        DenoisingAutoencoder,
        data_dim=6,
        latent_dim=2,
        likelihood="bernoulli",
        hidden=(8,),
    )
    check_lvm(lambda: (lvm(), (PixelErasure(0.5)(clean), clean)))
    check_lvm(lambda: (lvm(), clean))


def test_the_clean_datum_is_scored():
    lvm = DenoisingAutoencoder(data_dim=6, latent_dim=2, hidden=(8,))
    corrupted, clean = torch.randn(2, 9, 6)
    found = vilvm.evaluate(lvm, (corrupted, clean)).distortion.values
    expected = (
        -torch.distributions.Normal(reconstruct(lvm, corrupted), 1.0)
        .log_prob(clean)
        .sum(1)
        .double()
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, vilvm.evaluate(lvm, clean).distortion.values)


@pytest.mark.slow
def test_linear_denoiser_learns_gaussian_conditional_mean():
    # x ~ N(0, diag 4, 1), x̃ = x + ε, ε ~ N(0, I): E[x | x̃] = diag(4/5, 1/2) x̃ for any
    # code of two dimensions.
    torch.manual_seed(0)
    x = torch.randn(20_000, 2) * torch.tensor([2.0, 1.0])
    lvm = DenoisingAutoencoder(data_dim=2, latent_dim=2, hidden=())
    vilvm.fit(
        lvm,
        vilvm.Data(x, transform=Corrupted(GaussianNoise(1.0))),
        steps=1500,
        batch_size=500,
        optimizer=partial(torch.optim.Adam, lr=0.02),
        scheduler=partial(CosineAnnealingLR, T_max=1500),
    )
    at = torch.eye(2)
    slope = reconstruct(lvm, at) - reconstruct(lvm, torch.zeros(2, 2))
    # A least-squares slope of 20,000 pairs has an error of some (1/√20,000) / 1; five of those,
    # and the optimiser's own.
    torch.testing.assert_close(
        slope, torch.diag(torch.tensor([0.8, 0.5])), rtol=0, atol=0.06
    )


def test_unknown_likelihood():
    with pytest.raises(
        ValueError,
        match="unknown likelihood 'poisson'; choose 'bernoulli' or 'gaussian'",
    ):
        DenoisingAutoencoder(likelihood="poisson")
