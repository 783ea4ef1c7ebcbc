"""The linear auto-encoder is PCA."""

import math
from functools import partial

import pytest
import torch

import vilvm
from tests.models.exact import PCA_OF_MNIST, mnist_or_skip
from vilvm.evaluation import squared_error
from vilvm.models.linear_autoencoder import LinearAutoencoder


def principal_axes(x, d):
    centred = x.double() - x.double().mean(0)
    return torch.linalg.eigh(centred.T @ centred / len(x))[1].flip(1)[:, :d]


def largest_angle(U, axes):
    """The largest principal angle between the spans of the columns, in radians."""
    cosines = torch.linalg.svdvals(axes.T @ torch.linalg.qr(U.detach().double())[0])
    return math.acos(min(1.0, cosines.min().item()))


def train(x, d, steps, batch_size=None, lr=0.03):
    torch.manual_seed(0)
    lvm = LinearAutoencoder(x.shape[1], d).start_at(x.mean(0))
    momentum = partial(torch.optim.SGD, lr=lr, momentum=0.99, nesterov=True)
    decaying = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps)
    vilvm.fit(
        lvm,
        x,
        steps=steps,
        batch_size=batch_size,
        optimizer=momentum,
        scheduler=decaying,
    )
    return lvm


@pytest.mark.slow
def test_it_finds_the_principal_subspace():
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(500, 8, generator=generator)
        * torch.tensor([3.0, 2.5, 2.0, 1.0, 0.5, 0.5, 0.4, 0.3])
        + 2
    )
    x = x @ torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    lvm = train(x, 3, 1000, lr=0.02)
    assert largest_angle(lvm.U, principal_axes(x, 3)) < 1e-2
    torch.testing.assert_close(lvm.U.T @ lvm.U, torch.eye(3), rtol=0, atol=1e-2)
    variances = torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0))
    assert squared_error(lvm, x).mean == pytest.approx(
        variances[:5].sum().item(), rel=1e-3
    )


def test_the_loss_is_half_the_squared_error():
    lvm, x = LinearAutoencoder(6, 2), torch.randn(9, 6)
    distortion = vilvm.evaluate(lvm, x).distortion.values
    expected = squared_error(lvm, x).values / 2 + 3 * math.log(2 * math.pi)
    torch.testing.assert_close(distortion, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_axes_of_mnist():
    d, angle = 10, 0.02
    train_x, test_x = mnist_or_skip()
    lvm, exact = train(train_x, d, 40 * 60, 1000), PCA_OF_MNIST[d]
    assert squared_error(lvm, train_x).mean == pytest.approx(exact.sse_train, rel=1e-3)
    assert squared_error(lvm, test_x).mean == pytest.approx(exact.sse_test, rel=1e-3)
    assert largest_angle(lvm.U, principal_axes(train_x, d)) < angle
