"""Probabilistic PCA, compared with closed forms and the exact table of MNIST."""

import math
from functools import partial

import pytest
import torch
from torch.distributions import MultivariateNormal

import vilvm
from tests.models.exact import PCA_OF_MNIST, mnist_or_skip
from vilvm.models.ppca import PPCA


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 8, generator=generator) * torch.tensor([[3.0], [2.0], [1.0]])
    return (
        torch.randn(400, 3, generator=generator) @ basis
        + 0.5 * torch.randn(400, 8, generator=generator)
        + 1
    )


def test_evidence_and_posterior_match_the_joint_gaussian(x):
    lvm = PPCA(8, 3).double()
    x, (W, b, s) = x.double(), (p.detach() for p in (lvm.W, lvm.b, lvm.log_sigma.exp()))
    cov = W @ W.T + s**2 * torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(
        lvm.exact_log_evidence(x), MultivariateNormal(b, cov).log_prob(x)
    )
    posterior = lvm.exact_posterior(x)
    gain = W.T @ cov.inverse()  # by conditioning the joint Gaussian of z and x
    torch.testing.assert_close(posterior.mean, (x - b) @ gain.T)
    torch.testing.assert_close(
        posterior.covariance_matrix[0], torch.eye(3, dtype=torch.float64) - gain @ W
    )


def test_maximum_likelihood_is_stationary_with_exact_guide(x):
    lvm = PPCA(8, 3).double().maximise(x)
    x = x.double()
    lvm.exact_log_evidence(x).mean().backward()
    for p in (lvm.W, lvm.b, lvm.log_sigma):
        assert p.grad.abs().max() < 1e-8
    weights = vilvm.log_weights(lvm, x, 5).log_weight
    assert (weights - lvm.exact_log_evidence(x)).abs().max() < 1e-4


@pytest.mark.slow
def test_svi_reaches_the_likelihood(x):
    torch.manual_seed(0)
    best = PPCA(8, 3).maximise(x).exact_log_evidence(x).mean().item()
    lvm = PPCA(8, 3)
    decaying = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=3000)
    vilvm.fit(
        lvm,
        x,
        steps=3000,
        optimizer=partial(torch.optim.Adam, lr=0.05),
        scheduler=decaying,
    )
    assert best - 0.05 < lvm.exact_log_evidence(x).mean().item() <= best
    elbo = vilvm.evaluate(lvm, x, bounds="elbo", num_samples=200).bounds["elbo"]
    assert elbo.mean == pytest.approx(best, abs=0.1)


def test_dimensions_are_checked():
    with pytest.raises(
        ValueError, match="latent_dim must be at least 1 and below data_dim = 4; got 4"
    ):
        PPCA(4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 10, 50])
def test_the_exact_table_of_mnist(d):
    train, test = mnist_or_skip()
    lvm = PPCA(784, d).double().maximise(train)
    exact = PCA_OF_MNIST[d]
    assert lvm.log_sigma.exp().square().item() == pytest.approx(exact.noise, abs=1e-7)
    assert lvm.exact_log_evidence(train.double()).mean().item() == pytest.approx(
        exact.ll_train, abs=1e-3
    )
    assert lvm.exact_log_evidence(test.double()).mean().item() == pytest.approx(
        exact.ll_test, abs=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("d", [50])
def test_svi_reaches_the_table_from_a_random_start(d):
    train, test = mnist_or_skip()
    torch.manual_seed(0)
    lvm, steps = PPCA(784, d), 20 * math.ceil(len(train) / 1000)
    decaying = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps)
    vilvm.fit(
        lvm,
        train,
        steps=steps,
        batch_size=1000,
        optimizer=partial(torch.optim.Adam, lr=0.01),
        scheduler=decaying,
    )
    exact = PCA_OF_MNIST[d]
    assert lvm.exact_log_evidence(train).mean().item() == pytest.approx(
        exact.ll_train, rel=5e-3
    )
    assert lvm.exact_log_evidence(test).mean().item() == pytest.approx(
        exact.ll_test, rel=5e-3
    )
