"""The convolutional VAE: its likelihoods, and its ELBO by closed forms."""

import pytest
import torch
from pyro import poutine
from pyro.distributions import Normal
from torch.distributions import kl_divergence

import vilvm
from vilvm.guides import IAF
from vilvm.models.conv_vae import ConvVAE, tiny
from vilvm.priors import RealNVP
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


@pytest.mark.slow
def test_prior_and_flow_keep_the_contract():
    def make():
        prior, head = RealNVP(2, 2, (8,)), IAF(2, 1, hidden=(8,))
        lvm = ConvVAE(4, 2, channels=(3,), prior=prior, head=head)
        return lvm, torch.bernoulli(torch.full((5, 16), 0.5))

    check_lvm(make)


def test_prior_is_the_one_given():
    lvm = ConvVAE(4, 2, channels=(3,), prior=RealNVP(2, 2, (8,)))
    z = torch.randn(7, 2)
    trace = poutine.trace(poutine.condition(lvm.model, {"z": z})).get_trace(
        torch.ones(7, 16)
    )
    trace.compute_log_prob()
    expected = lvm.prior().log_prob(z)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected)


def test_start_is_the_mean_of_all_pixels():
    lvm = ConvVAE(4, 2, channels=(3,)).start_at(torch.linspace(0.2, 0.4, 16))
    torch.testing.assert_close(
        lvm.decoder.stages[-2].bias.sigmoid(), torch.tensor([0.3])
    )


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
