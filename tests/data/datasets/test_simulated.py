"""Simulated data sets: cells, documents and pendulums have the distributions that they state."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from vilvm.data.datasets import (
    Cells,
    cells,
    documents,
    pendulums,
    topics_of_documents,
)

LOG_LIBRARY, SPREAD, MISSED = torch.tensor(400.0).log().double(), 0.5, 0.1


def test_density_of_cells_is_the_average_over_their_latents():
    """|z| < 5 in Monte Carlo standard errors for three cells: fails once in 600,000 seeds."""
    truth, x = Cells(40), cells(3, 1, num_genes=40).train.x
    log_library = LOG_LIBRARY + SPREAD * torch.randn(2000, dtype=torch.float64)
    # (draws of ℓ, data, types)
    terms = truth.given(log_library[:, None]).log_prob(x.double()[:, None]).sum(-1)
    exact = truth.log_prob(x)
    ratio = (terms - exact[:, None]).exp().mean(-1)
    error = ratio.std(0) / len(ratio) ** 0.5
    assert ((ratio.mean(0) - 1).abs() < 5 * error).all()


def test_cells_have_the_means_and_zeros_of_their_density():
    """|z| < 5 for 40 means and 40 shares of zeros: fails once in 20,000 seeds."""
    count, truth = 20_000, Cells(40)
    x = cells(count, 1, num_genes=40).train.x.double()
    mean = (1 - MISSED) * truth.shares.mean(0) * (LOG_LIBRARY + SPREAD**2 / 2).exp()
    z = (x.mean(0) - mean) / (x.std(0) / count**0.5)
    assert z.abs().max() < 5
    points = torch.linspace(-5, 5, 101, dtype=torch.float64)
    weight = (-points.square() / 2).softmax(0)
    none = truth.given(LOG_LIBRARY + SPREAD * points).log_prob(torch.zeros(40)).exp()
    share = (weight[:, None] * none.mean(1)).sum(0)
    zeros = (x == 0).double().mean(0)
    assert ((zeros - share).abs() < 5 * (share * (1 - share) / count).sqrt()).all()


def test_documents_have_the_frequencies_of_their_topics():
    """|z| < 5 for 20 frequencies: fails once in 80,000 seeds."""
    count = 5000
    x = documents(count, 1, num_topics=2, num_words=20).train.x.double()
    expected = 80 * topics_of_documents(2, 20).mean(0)
    assert ((x.mean(0) - expected).abs() < 5 * x.std(0) / count**0.5).all()
    length = x.sum(-1)
    assert abs(length.mean() - 80) < 5 * (80 / count) ** 0.5
    assert length.std() > 1
    with pytest.raises(ValueError, match="multiple of the 3 topics; got 20"):
        documents(num_topics=3, num_words=20)


def test_pendulums_obey_their_equation_up_to_noise():
    """Compared with scipy's Runge–Kutta method from the same starts."""
    (x, lengths), greatest = pendulums(20, 1, length=(5, 30)).train.x, 30
    generator = torch.Generator().manual_seed(0)
    torch.randint(5, greatest + 1, (20,), generator=generator)
    phi = 5 * torch.rand(20, generator=generator) - 2.5
    omega = 0.5 * torch.randn(20, generator=generator)
    solved = solve_ivp(
        lambda t, y: [*y[20:], *(-np.sin(y[:20]) - y[20:] / 20)],
        (0, 12),
        [*phi.tolist(), *omega.tolist()],
        t_eval=0.4 * np.arange(greatest),
        rtol=1e-6,
    )
    padding = torch.arange(greatest) >= lengths[:, None]
    assert not x[padding].any()
    noise = (x[..., 0] - torch.from_numpy(np.sin(solved.y[:20])))[~padding]
    # 350 numbers: the deviation of normal noise is known to a twenty-seventh
    assert noise.std().item() == pytest.approx(0.1, rel=0.2)


def test_simulated_data_are_fixed_by_the_seed():
    for make in (cells, documents, pendulums):
        first, again, other = (make(20, 10, seed=s).test.x for s in (0, 0, 1))
        if isinstance(first, tuple):
            first, again, other = first[0], again[0], other[0]
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
