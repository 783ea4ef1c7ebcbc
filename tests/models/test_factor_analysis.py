"""Factor analysis, compared with closed forms and with scikit-learn."""

from functools import partial

import pytest
import torch
from sklearn.decomposition import FactorAnalysis as Sklearn
from torch.distributions import MultivariateNormal, kl_divergence

import vilvm
from vilvm.models.factor_analysis import FactorAnalysis
from vilvm.testing import check_lvm


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    noise = torch.linspace(0.3, 1.5, 8, dtype=torch.float64)
    z, e = (
        torch.randn(500, n, generator=generator, dtype=torch.float64) for n in (3, 8)
    )
    return z @ W.T + 1 + noise * e


@pytest.fixture(params=[False, True], ids=["full", "diagonal"])
def lvm(request):
    torch.manual_seed(0)
    lvm = FactorAnalysis(8, 3, diagonal=request.param).double()
    with torch.no_grad():
        lvm.W.mul_(3)
        lvm.log_psi.copy_(torch.linspace(-1, 1, 8))
    return lvm


def test_evidence_and_posterior_match_the_joint_gaussian(lvm, x):
    W, b, psi = (p.detach() for p in (lvm.W, lvm.b, lvm.psi))
    cov = W @ W.T + psi.diag()
    torch.testing.assert_close(
        lvm.exact_log_evidence(x), MultivariateNormal(b, cov).log_prob(x)
    )
    posterior = lvm.exact_posterior(x)
    gain = W.T @ cov.inverse()  # by conditioning the joint Gaussian of z and x
    torch.testing.assert_close(posterior.mean, (x - b) @ gain.T)
    torch.testing.assert_close(
        posterior.covariance_matrix[0], torch.eye(3, dtype=torch.float64) - gain @ W
    )


def test_the_best_full_guide_is_exact(x):
    torch.manual_seed(0)
    lvm = FactorAnalysis(8, 3).double().optimise_guide()
    weights = vilvm.log_weights(lvm, x, 5).log_weight
    torch.testing.assert_close(weights, lvm.exact_log_evidence(x).expand(5, -1))


def test_best_diagonal_guide_has_the_exact_gap(x):
    torch.manual_seed(0)
    lvm = FactorAnalysis(8, 3, diagonal=True).double().requires_grad_(False)
    lvm.optimise_guide()
    posterior = lvm.exact_posterior(x)
    M = posterior.precision_matrix[0]
    gap = (M.diagonal().log().sum() - torch.logdet(M)) / 2
    q = MultivariateNormal((x - lvm.b) @ lvm.V.T, scale_tril=lvm.L)
    torch.testing.assert_close(kl_divergence(q, posterior), gap.expand(len(x)))
    assert gap > 0.01
    elbo = vilvm.evaluate(lvm, x, bounds="elbo", num_samples=400).bounds["elbo"]
    assert (
        abs(lvm.exact_log_evidence(x).mean().item() - elbo.mean - gap.item())
        < 5 * elbo.mc_se
    )
    for scale in (0.9, 1.1):  # no other diagonal does better
        other = MultivariateNormal(q.mean, scale_tril=scale * lvm.L)
        assert (kl_divergence(other, posterior) > gap).all()


def test_em_never_lowers_the_likelihood(lvm, x):
    likelihoods = [
        lvm.maximise(x, max_steps=1).exact_log_evidence(x).mean().item()
        for _ in range(60)
    ]
    gains = torch.tensor(likelihoods).double().diff()
    assert gains.min() > -1e-12
    assert likelihoods[-1] - likelihoods[0] > 0.01


@pytest.mark.slow
def test_maximum_likelihood_is_stationary_and_equals_sklearns(x):
    torch.manual_seed(0)
    lvm = FactorAnalysis(8, 3).double().maximise(x, tolerance=1e-13)
    theirs = Sklearn(3, tol=1e-10, max_iter=20_000).fit(x.numpy()).score(x.numpy())
    ours = lvm.exact_log_evidence(x).mean()
    assert ours.item() == pytest.approx(theirs, abs=1e-6)
    ours.backward()
    for p in (lvm.W, lvm.b, lvm.log_psi):
        assert p.grad is not None
        assert p.grad.abs().max() < 1e-4
    weights = vilvm.log_weights(lvm, x, 3).log_weight
    torch.testing.assert_close(
        weights, lvm.exact_log_evidence(x).detach().expand(3, -1)
    )


def test_constant_variable_keeps_the_least_noise(x):
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    lvm = FactorAnalysis(9, 3).double().maximise(x, max_steps=300)
    assert lvm.psi[-1].item() == pytest.approx(1e-6)
    assert torch.isfinite(lvm.exact_log_evidence(x)).all()


@pytest.mark.slow
def test_svi_reaches_the_likelihood(x):
    torch.manual_seed(0)
    best = FactorAnalysis(8, 3).maximise(x).exact_log_evidence(x.float()).mean().item()
    lvm = FactorAnalysis(8, 3)
    decaying = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=700)
    vilvm.fit(
        lvm,
        x.float(),
        steps=700,
        optimizer=partial(torch.optim.Adam, lr=0.05),
        scheduler=decaying,
    )
    reached = lvm.exact_log_evidence(x.float()).mean().item()
    assert best - 0.05 < reached <= best + 1e-4
    elbo = vilvm.evaluate(lvm, x.float(), bounds="elbo", num_samples=200).bounds["elbo"]
    assert elbo.mean == pytest.approx(reached, abs=0.05)


def test_the_diagonal_guide_keeps_the_contract():
    check_lvm(lambda: (FactorAnalysis(6, 2, diagonal=True), torch.randn(5, 6)))


def test_dimensions_are_checked():
    with pytest.raises(
        ValueError, match="latent_dim must be at least 1 and below data_dim = 4; got 4"
    ):
        FactorAnalysis(4, 4)
