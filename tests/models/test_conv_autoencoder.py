"""The convolutional auto-encoder: both likelihoods, its shapes, and its gain over PCA."""

import pytest
import torch

import vilvm
from tests.models.exact import PCA_OF_MNIST, mnist_or_skip
from vilvm.evaluation import squared_error
from vilvm.models.conv_autoencoder import ConvAutoencoder
from vilvm.testing import check_lvm
from vilvm.training import one_cycle


def test_bernoulli_keeps_the_contract():
    check_lvm(
        lambda: (
            ConvAutoencoder(4, 2, "bernoulli", (3,)),
            torch.bernoulli(torch.full((5, 16), 0.5)),
        )
    )


def test_the_decoder_mirrors_the_encoder():
    lvm = ConvAutoencoder(28, 10)
    down = [
        tuple(m.weight.shape)
        for m in lvm.encoder.modules()
        if isinstance(m, torch.nn.Conv2d)
    ]
    up = [
        tuple(m.weight.shape)
        for m in lvm.decoder.modules()
        if isinstance(m, torch.nn.ConvTranspose2d)
    ]
    assert (
        down == up[::-1]
    )  # a transposed convolution keeps its weight as (in, out, ...)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"side": 10}, "side 10 cannot be halved 2 times"),
        (
            {"likelihood": "poisson"},
            "unknown likelihood 'poisson'; choose 'bernoulli' or 'gaussian'",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvAutoencoder(**arguments)


@pytest.mark.slow
def test_error_is_a_third_below_pca_on_mnist():
    train, test = mnist_or_skip()
    torch.manual_seed(0)
    lvm, steps = ConvAutoencoder(28, 10), 5 * 300
    vilvm.fit(lvm, train, steps=steps, batch_size=200, **one_cycle(4e-3, steps))
    assert squared_error(lvm, test).mean < 0.65 * PCA_OF_MNIST[10].sse_test
