"""M2: the sum over labels by hand, the labelled bound, and the classifier's gradient."""

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

import vilvm
from vilvm.guides import normal
from vilvm.models.semi_supervised_vae import SemiSupervisedVAE, objective, tiny
from vilvm.testing import check_lvm


def bound_given(lvm, x, y, eps):
    """−L(x, y) at one draw of z, whose noise is eps."""
    q = normal(lvm.encoder(lvm._with_class(x, y)))
    z = q.mean + q.stddev * eps
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    likelihood = lvm.decode(y, z).log_prob(x)
    num_classes = torch.tensor(float(lvm.num_classes))
    return likelihood - num_classes.log() + prior - q.log_prob(z)


def test_unlabelled_elbo_is_the_sum_over_labels():
    lvm, batch = tiny()
    x = batch["x"]
    torch.manual_seed(1)
    loss = objective().differentiable_loss(lvm.model, lvm.guide, batch)
    torch.manual_seed(1)
    eps = torch.randn(3, 5, 2)
    log_q = lvm.classifier(x).log_softmax(-1)
    by_hand = torch.zeros(5)
    for k in range(3):
        y = torch.full((5,), k)
        term = bound_given(lvm, x, y, eps[k]) - log_q[:, k]
        by_hand = by_hand + log_q[:, k].exp() * term
    torch.testing.assert_close(loss, -by_hand.sum())


def test_labelled_elbo_is_that_of_the_label():
    lvm, batch = tiny()
    y = torch.tensor([0, 2, 1, 1, 0])
    torch.manual_seed(1)
    loss = objective().differentiable_loss(lvm.model, lvm.guide, {**batch, "y": y})
    torch.manual_seed(1)
    expected = bound_given(lvm, batch["x"], y, torch.randn(5, 2))
    torch.testing.assert_close(loss, -expected.sum())


def test_labels_train_the_classifier_by_cross_entropy():
    lvm, batch = tiny()
    y = torch.tensor([0, 2, 1, 1, 0])
    loss = objective().differentiable_loss(lvm.model, lvm.guide, {**batch, "y": y})
    parameters = list(lvm.classifier.parameters())
    found = torch.autograd.grad(loss, parameters)
    by_hand = 50 * cross_entropy(lvm.classifier(batch["x"]), y, reduction="sum")
    torch.testing.assert_close(found, torch.autograd.grad(by_hand, parameters))


def test_evaluation_sums_over_labels_in_the_mean():
    """|z| < 5 for 5 data: fails once in 300,000 runs."""
    torch.manual_seed(0)
    lvm, batch = tiny()
    elbo = vilvm.evaluate(lvm, batch, num_samples=2000).bounds["elbo"]
    eps, log_q = torch.randn(2000, 3, 5, 2), lvm.classifier(batch["x"]).log_softmax(-1)
    labels = torch.arange(3)[:, None].expand(3, 5)
    with torch.no_grad():
        by_label = bound_given(lvm, batch["x"], labels, eps) - log_q.T
        draws = (log_q.T.exp() * by_label).sum(1).double()
    error = (elbo.errors.square() + draws.var(0) / 2000).sqrt()
    assert ((elbo.values - draws.mean(0)).abs() < 5 * error).all()


def test_labelled_batch_keeps_the_contract_of_a_pair():
    lvm, batch = tiny()
    labelled = {**batch, "y": torch.tensor([0, 2, 1, 1, 0])}
    found = vilvm.evaluate(lvm, labelled, num_samples=10)
    assert found.bounds["elbo"].values.shape == (5,)


def test_few_labels_name_the_clusters():
    """Two clusters far apart, five labels each."""
    torch.manual_seed(0)
    y = torch.arange(200) % 2
    p = torch.where(y[:, None] == 1, 0.9, 0.1).expand(-1, 12)
    x = torch.bernoulli(p)
    lvm = SemiSupervisedVAE(12, 2, latent_dim=1, hidden=(16,))
    labelled = {"x": x[:10].repeat(2, 1), "y": y[:10].repeat(2)}
    data = vilvm.Interleaved({"x": x[10:]}, labelled)
    vilvm.fit(
        lvm,
        data,
        epochs=40,
        batch_size=20,
        objective=objective(),
        optimizer=partial(torch.optim.Adam, lr=1e-2),
    )
    assert (lvm.classify(x).argmax(-1) == y).float().mean() > 0.95


@pytest.mark.slow
def test_labelled_pair_keeps_the_contract():
    def labelled():
        lvm, batch = tiny()
        return lvm, {**batch, "y": torch.tensor([0, 2, 1, 1, 0])}

    check_lvm(labelled, objective())
