"""The deep auto-encoder: both likelihoods, its loss, and its gain over PCA."""

import math

import pytest
import torch

import vilvm
from tests.models.exact import PCA_OF_MNIST, mnist_or_skip
from vilvm.evaluation import squared_error
from vilvm.models.autoencoder import Autoencoder
from vilvm.testing import check_lvm
from vilvm.training import one_cycle


def bernoulli():
    return Autoencoder(
        data_dim=6, latent_dim=2, likelihood="bernoulli", hidden=(8,)
    ), torch.bernoulli(torch.full((5, 6), 0.5))


def test_bernoulli_keeps_the_contract():
    check_lvm(bernoulli)


def test_loss_is_squared_error_or_cross_entropy():
    lvm, x = Autoencoder(data_dim=6, latent_dim=2, hidden=(8,)), torch.rand(9, 6)
    expected = squared_error(lvm, x).values / 2 + 3 * math.log(2 * math.pi)
    torch.testing.assert_close(
        vilvm.evaluate(lvm, x).distortion.values, expected, rtol=1e-5, atol=1e-5
    )
    lvm, x = bernoulli()
    logits = lvm.decoder(lvm.encoder(x))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, x, reduction="none"
    ).sum(1)
    torch.testing.assert_close(
        vilvm.evaluate(lvm, x).distortion.values,
        expected.double().detach(),
        rtol=1e-5,
        atol=1e-5,
    )


def test_unknown_likelihood():
    with pytest.raises(
        ValueError,
        match="unknown likelihood 'poisson'; choose 'bernoulli' or 'gaussian'",
    ):
        Autoencoder(likelihood="poisson")


@pytest.mark.slow
def test_error_is_a_third_below_pca_on_mnist():
    train, test = mnist_or_skip()
    torch.manual_seed(0)
    lvm, steps = Autoencoder(784, 10), 10 * 300
    vilvm.fit(lvm, train, steps=steps, batch_size=200, **one_cycle(2e-3, steps))
    assert squared_error(lvm, test).mean < 0.65 * PCA_OF_MNIST[10].sse_test
