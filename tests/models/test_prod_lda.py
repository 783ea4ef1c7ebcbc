"""The topic model: its prior and likelihood in closed form, and topics that are known."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Dirichlet

import vilvm
from examples.gallery.prod_lda import shared_words
from vilvm.data.datasets import documents, topics_of_documents
from vilvm.models.prod_lda import ProdLDA, laplace_dirichlet
from vilvm.training import one_cycle


def test_likelihood_is_scipys_multinomial():
    lvm = ProdLDA(6, 3).double()
    h = torch.randn(4, 1, 3, dtype=torch.float64)  # samples, then data
    x = np.array([[3, 0, 1, 0, 0, 2], [0, 0, 0, 0, 0, 0]])
    counts = torch.from_numpy(x).double()
    ours = lvm.decode(h, counts.sum(-1)).log_prob(counts).detach()
    beta, b = (p.detach().numpy() for p in (lvm.decoder.weight.T, lvm.decoder.bias))
    theta = np.exp(h[:, 0].numpy())
    theta /= theta.sum(-1, keepdims=True)
    # the product of experts, word by word
    words = np.exp(b) * np.prod(np.exp(beta) ** theta[..., None], axis=1)
    words /= words.sum(-1, keepdims=True)
    exact = [[stats.multinomial(row.sum(), p).logpmf(row) for row in x] for p in words]
    np.testing.assert_allclose(ours.numpy(), exact, rtol=1e-9)


def test_prior_is_the_laplace_approximation_in_softmax_basis():
    """At the mode of the Dirichlet's density of h, its gradient is zero, its curvature known."""
    alpha = torch.tensor([0.5, 1.0, 3.0, 2.0], dtype=torch.float64)
    mean, variance = laplace_dirichlet(alpha)

    def log_density(h):
        # the Jacobian of the softmax multiplies the density by Π θ_k
        theta = h.softmax(-1)
        return Dirichlet(alpha).log_prob(theta) + theta.log().sum()

    at_mode = mean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(at_mode), at_mode)
    torch.testing.assert_close(gradient, torch.zeros(4).double(), atol=1e-12, rtol=0)
    hessian = torch.autograd.functional.hessian(log_density, mean)
    # singular along (1, …, 1), which the softmax ignores: the inverse is that on its complement
    exact = torch.linalg.pinv(-hessian).diagonal()
    within = torch.eye(4).double() - 0.25
    torch.testing.assert_close(exact, (within @ (1 / alpha).diag() @ within).diagonal())
    torch.testing.assert_close(variance, exact)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="concentration must be a positive number"):
        ProdLDA(6, 3, concentration=0)
    with pytest.raises(
        ValueError, match="num_topics must be a whole number, at least 2"
    ):
        ProdLDA(6, 1)


def test_start_at_takes_frequencies_of_words():
    x = torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 6.0]])
    bias = ProdLDA(3, 2).start_at(x).decoder.bias
    torch.testing.assert_close(bias.softmax(0), torch.tensor([1.5, 0.5, 9.5]) / 11.5)


@pytest.mark.slow
def test_topics_of_simulated_documents_are_found():
    data, true = documents(1000, 200), topics_of_documents()
    lvm = ProdLDA(100, 5).start_at(data.train.x)
    vilvm.fit(lvm, data.train, steps=300, batch_size=200, **one_cycle(2e-2, 300))
    order, shares = shared_words(lvm.topics, true)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert shares.min() >= 0.9
    theta = vilvm.posterior(lvm, data.test.x, 50)["h"].softmax(-1).mean(0)
    found = theta[:, order.long()].argmax(-1)
    # the weights of topics that are known, by EM, find the main topic of 95 %
    known = torch.full((200, 5), 0.2, dtype=torch.float64)
    for _ in range(500):
        shares = known.unsqueeze(-1) * true
        known = (data.test.x.unsqueeze(1) * shares / shares.sum(1, True)).sum(-1)
        known /= known.sum(-1, True)
    ours, best = (
        (t == data.test.labels).double().mean() for t in (found, known.argmax(-1))
    )
    assert ours > best - 0.1
