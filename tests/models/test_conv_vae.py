"""The convolutional VAE: its likelihoods, and its ELBO by closed forms."""

import pytest
import torch
from pyro.distributions import Normal
from torch.distributions import kl_divergence

import vilvm
from vilvm.models.conv_vae import ConvVAE, tiny
from vilvm.testing import check_lvm


@pytest.mark.slow
def test_gaussian_keeps_the_contract():
    check_lvm(lambda: (ConvVAE(4, 2, "gaussian", (3,)), torch.rand(5, 16)))


def test_rate_is_the_divergence_in_closed_form():
    """|z| < 5 for 5 data: fails once in 300,000 runs."""
    lvm, x = tiny()
    mean, log_variance = lvm.encoder(x).detach().double().chunk(2, -1)
    q = Normal(mean, (log_variance / 2).exp())
    expected = kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
    rate = vilvm.evaluate(lvm, x, num_samples=2000).rate
    assert ((rate.values - expected).abs() < 5 * rate.errors + 1e-6).all()


def test_decoder_is_a_picture_for_each_head():
    lvm = ConvVAE(8, 3, "gaussian", (4, 5))
    fn = lvm.decode(torch.randn(2, 7, 3))
    assert fn.batch_shape == (2, 7)
    assert fn.mean.shape == fn.variance.shape == (2, 7, 64)
    assert (fn.mean - lvm.decoder(torch.zeros(1, 3))[:, :64]).abs().max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"side": 10}, "side 10 cannot be halved 2 times"),
        ({"likelihood": "poisson"}, "unknown likelihood 'poisson'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvVAE(**arguments)
