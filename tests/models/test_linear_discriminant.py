"""Linear discriminant analysis, compared with scikit-learn and with sums over the classes."""

from functools import partial

import pytest
import sklearn
import torch
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import vilvm
from vilvm.models.linear_discriminant import LinearDiscriminant, objective, tiny
from vilvm.testing import check_lvm


@pytest.fixture
def labelled():
    generator = torch.Generator().manual_seed(0)
    y = torch.multinomial(
        torch.tensor([0.5, 0.3, 0.2]), 600, replacement=True, generator=generator
    )
    mu = torch.tensor([[0.0, 0.0, 0.0], [3.0, 1.0, 0.0], [0.0, 3.0, -2.0]])
    basis = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 0.6]])
    x = mu[y] + torch.randn(600, 3, generator=generator) @ basis.T
    return x.double(), y


@pytest.fixture
def lvm(labelled):
    return LinearDiscriminant(3, 3).double().maximise(*labelled)


# Before 1.9 scikit-learn's solver "svd" scaled the covariance in another way than the others.
OLD = tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 9)


@pytest.mark.parametrize(
    "solver",
    [
        "lsqr",
        "eigen",
        pytest.param("svd", marks=pytest.mark.skipif(OLD, reason="scikit-learn < 1.9")),
    ],
)
def test_posterior_is_that_of_sklearn(lvm, labelled, solver):
    x, y = (v.numpy() for v in labelled)
    theirs = LinearDiscriminantAnalysis(solver=solver).fit(x, y).predict_proba(x)
    torch.testing.assert_close(
        lvm.classify(labelled[0]).detach(), torch.from_numpy(theirs), atol=1e-6, rtol=0
    )


def test_supervised_fit_maximises_the_joint_likelihood(lvm, labelled):
    x, y = labelled
    lvm._log_joint(x)[torch.arange(len(x)), y].mean().backward()
    for p in (lvm.logits, lvm.mu, lvm.unconstrained_L):
        assert p.grad.abs().max() < 1e-10


def test_evidence_is_the_sum_over_classes(lvm, labelled):
    x, _ = labelled
    cov = (lvm.L @ lvm.L.T).detach().numpy()
    weights = lvm.logits.softmax(-1).detach()
    densities = [
        w.item() * multivariate_normal(m.detach().numpy(), cov).pdf(x.numpy())
        for w, m in zip(weights, lvm.mu, strict=True)
    ]
    torch.testing.assert_close(
        lvm.exact_log_evidence(x).detach(), torch.from_numpy(sum(densities)).log()
    )


def test_the_best_guide_is_exact(lvm, labelled):
    x, _ = labelled
    torch.testing.assert_close(lvm.posterior_logits(x).softmax(-1), lvm.classify(x))
    log_weight = vilvm.log_weights(lvm, x, 5).log_weight
    torch.testing.assert_close(log_weight, lvm.exact_log_evidence(x).expand(5, -1))


def test_enumeration_is_the_expectation_that_draws_estimate(labelled):
    x, _ = labelled
    torch.manual_seed(1)
    lvm = LinearDiscriminant(3, 3).double()
    q = lvm.posterior_logits(x).log_softmax(-1)
    elbo = (q.exp() * (lvm._log_joint(x) - q)).sum()
    assert -objective().loss(lvm.model, lvm.guide, x) == pytest.approx(elbo.item())
    drawn = vilvm.evaluate(lvm, x, bounds="elbo", num_samples=300).bounds["elbo"]
    assert abs(drawn.mean - elbo.item() / len(x)) < 5 * drawn.mc_se
    gap = (q.exp() * (q - lvm.exact_posterior(x).logits)).sum()  # KL(q ‖ p(y | x))
    assert (lvm.exact_log_evidence(x).sum() - elbo).item() == pytest.approx(gap.item())


@pytest.mark.slow
def test_unlabelled_training_reaches_the_evidence_from_few_labels(labelled):
    x, y = labelled[0].float(), labelled[1]
    few = torch.cat([(y == k).nonzero()[:10, 0] for k in range(3)])
    # a mixture also has poor maxima; a few labels select the right one
    lvm = LinearDiscriminant(3, 3).maximise(x[few], y[few])
    start = lvm.exact_log_evidence(x).mean().item()
    decaying = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=400)
    vilvm.fit(
        lvm,
        x,
        steps=400,
        objective=objective(),
        optimizer=partial(torch.optim.Adam, lr=0.05),
        scheduler=decaying,
    )
    evidence = lvm.exact_log_evidence(x).mean().item()
    elbo = -objective().loss(lvm.model, lvm.guide, x) / len(x)
    assert evidence - 0.02 < elbo <= evidence + 1e-5
    assert evidence > start
    supervised = LinearDiscriminant(3, 3).maximise(x, y)
    # labels cannot help to maximise p(x)
    assert evidence > supervised.exact_log_evidence(x).mean().item() - 0.02
    agree = (
        (lvm.classify(x).argmax(-1) == supervised.classify(x).argmax(-1))
        .double()
        .mean()
    )
    assert agree > 0.95


@pytest.mark.slow
def test_the_contract_holds_under_enumeration():
    check_lvm(tiny, objective())


def test_bad_labels_are_refused(labelled):
    x, y = labelled
    with pytest.raises(
        ValueError,
        match="y must hold, for each of 600 data, a whole number from 0 to 1",
    ):
        LinearDiscriminant(3, 2).maximise(x, y)
    with pytest.raises(ValueError, match="class 3 has no datum"):
        LinearDiscriminant(3, 4).maximise(x, y)
    with pytest.raises(
        ValueError,
        match="covariance within the classes of 3 data in 3 dimensions is singular",
    ):
        LinearDiscriminant(3, 3).maximise(x[:3], torch.arange(3))
    with pytest.raises(ValueError, match="num_classes of at least 2; got 3 and 1"):
        LinearDiscriminant(3, 1)
