"""The fitted scale of a Gaussian likelihood, compared with its closed form.

A linear auto-encoder with a full Gaussian prior is pPCA.
"""

import pytest
import torch

import vilvm
from vilvm.evaluation import squared_error
from vilvm.models.linear_autoencoder import LinearAutoencoder
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.priors import fit_prior
from vilvm.wrappers import with_prior, with_prior_guide
from vilvm.wrappers.likelihood_scale import fit_likelihood_scale


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    shape = 2 * torch.randn(2, 6, generator=generator)
    return torch.randn(2000, 2, generator=generator) @ shape + 0.5 * torch.randn(
        2000, 6, generator=generator
    )


@pytest.fixture
def pca(x):
    lvm = LinearAutoencoder(6, 2).start_at(x.mean(0))
    with torch.no_grad():
        lvm.U.copy_(torch.linalg.eigh(torch.cov(x.T)).eigenvectors[:, -2:])
    return lvm


def test_scale_is_the_root_mean_square_residual(pca, x):
    lvm = fit_likelihood_scale(pca, x)
    assert lvm.scale.item() ** 2 == pytest.approx(
        squared_error(pca, x).mean / 6, rel=1e-4
    )
    found = vilvm.evaluate(lvm, x).distortion.mean
    expected = 3 * (2 * torch.pi * lvm.scale.double() ** 2).log() + 3
    assert found == pytest.approx(expected.item(), rel=1e-4)
    assert vilvm.evaluate(pca, x).distortion.mean != pytest.approx(found, rel=1e-2)


def test_linear_auto_encoder_with_gaussian_prior_is_ppca(pca, x):
    lvm = with_prior_guide(
        with_prior(fit_likelihood_scale(pca, x), fit_prior(pca, x, "full"))
    )
    z = lvm.lvm.prior.distribution()
    cov = (
        pca.U @ z.covariance_matrix @ pca.U.T
        + lvm.lvm.lvm.scale.square() * torch.eye(6)
    )
    truth = (
        torch.distributions.MultivariateNormal(pca.U @ z.mean + pca.b, cov)
        .log_prob(x)
        .detach()
    )
    bounds = vilvm.evaluate(lvm, x[:5], num_samples=50_000).bounds["iwae"]
    assert ((bounds.values - truth[:5]) / bounds.errors).abs().max() < 5
    # Its noise is SSE / D, but maximum likelihood has SSE / (D − d), since a code leaves d
    # dimensions without residual; so it cannot be better.
    best = PPCA(6, 2).maximise(x).exact_log_evidence(x).detach()
    assert 0 < (best - truth).mean().item() < 0.3


def test_models_without_one_gaussian_site_are_refused():
    with pytest.raises(
        vilvm.ContractError,
        match=r"one Gaussian observed site; VAE observes \{'x': 'Bernoulli'\}",
    ):
        fit_likelihood_scale(VAE(6, 2), torch.zeros(5, 6))
