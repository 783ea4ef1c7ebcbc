"""Maps of approximations: inverses, Jacobians, and densities of mixtures."""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import vilvm
from tests.inference.exact import mean_model
from vilvm.inference._approximations import (
    Chain,
    Gaussian,
    LowRank,
    Mixture,
    Skewed,
    pair_of,
)
from vilvm.inference._flow import Coupling

D = 4


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def tril():
    return (random(D, D) / 3).tril(-1) + torch.diag(random(D).exp())


def low_rank():
    basis = torch.linalg.qr(random(D, 2))[0]
    factor = tril()[:2, :2]
    return LowRank(random(D), random(D).exp(), basis, factor)


def skew():
    return Skewed(random(D), random(D).exp(), tril(), random(D) / 2, random(D) / 4)


def flow():
    module = Coupling(D, 2).double()
    with torch.no_grad():
        for parameter in module.layers.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


MAPS = {
    "diagonal": lambda: Gaussian(random(D), random(D).exp()),
    "full": lambda: Gaussian(random(D), tril()),
    "skewed": skew,
    "low rank": low_rank,
    "chain": lambda: Chain(skew(), low_rank(), Gaussian(random(D), tril())),
    "flow": flow,
}


@pytest.mark.parametrize("name", MAPS)
def test_inverse_and_log_determinant(name):
    map_ = MAPS[name]()
    eps = random(6, D)
    u, log_det = map_(eps)
    assert torch.allclose(map_.inverse(u), eps, atol=1e-8)
    jacobian = torch.autograd.functional.jacobian(lambda e: map_(e)[0].sum(0), eps)
    exact = torch.linalg.slogdet(jacobian.transpose(0, 1))[1]
    assert torch.allclose(log_det.expand(6), exact)


@pytest.mark.parametrize("name", ["diagonal", "full", "low rank"])
def test_density_of_linear_map_is_that_of_a_gaussian(name):
    map_ = MAPS[name]()
    with torch.no_grad():
        loc, _ = map_(torch.zeros(1, D).double())
        columns = map_(torch.eye(D).double())[0] - loc
        assert torch.allclose(loc[0], map_.loc)
        exact = MultivariateNormal(loc[0], columns.T @ columns)
        u = random(5, D)
        found = Mixture([map_], torch.zeros(1).double()).log_prob(u)
    assert torch.allclose(found, exact.log_prob(u))


def test_low_rank_covariance_is_the_dense_one():
    map_ = low_rank()
    s, q = torch.diag(map_.scale), map_.basis
    moved = torch.eye(D).double() + q @ (map_.factor - torch.eye(2).double()) @ q.mT
    dense = s @ moved @ moved.mT @ s
    columns = map_(torch.eye(D).double())[0] - map_.loc
    assert torch.allclose(columns.T @ columns, dense)


def test_skewed_without_skew_is_the_gaussian():
    zero, scale, mixing = torch.zeros(D).double(), random(D).exp(), tril()
    loc, eps = random(D), random(5, D)
    u, log_det = Skewed(loc, scale, mixing, zero, zero)(eps)
    v, exact = Gaussian(loc, scale[:, None] * mixing)(eps)
    assert torch.allclose(u, v)
    assert torch.allclose(log_det, exact)


def test_mixture_equals_that_of_torch():
    parts = [Gaussian(random(D), tril()) for _ in range(3)]
    logits = random(3)
    locs = torch.stack([p.loc.detach() for p in parts])
    trils = torch.stack([p.scale.detach() for p in parts])
    exact = MixtureSameFamily(
        Categorical(logits=logits), MultivariateNormal(locs, scale_tril=trils)
    )
    u = random(2, 5, D)
    assert torch.allclose(Mixture(parts, logits).log_prob(u), exact.log_prob(u))


def test_mixture_draws_have_its_moments():
    parts = [Gaussian(random(D), tril()) for _ in range(3)]
    logits, num = random(3), 40_000
    exact = MixtureSameFamily(
        Categorical(logits=logits),
        MultivariateNormal(
            torch.stack([p.loc.detach() for p in parts]),
            scale_tril=torch.stack([p.scale.detach() for p in parts]),
        ),
    )
    u = Mixture(parts, logits).sample((num,))
    z = (u.mean(0) - exact.mean) / (exact.variance / num).sqrt()
    assert z.abs().max() < 5  # fails once in 430,000 runs
    squares = (u - exact.mean).square()
    z = (squares.mean(0) - exact.variance) / (squares.std(0) / num**0.5)
    assert z.abs().max() < 5


def test_densities_integrate_to_one():
    def one(value):
        return torch.full((1,), value, dtype=torch.float64)

    skewed = Skewed(one(0.5), one(2.0), torch.ones(1, 1).double(), one(0.8), one(-0.2))
    parts = [
        skewed,
        Gaussian(one(-2.0), one(0.7)),
        Chain(Gaussian(one(1.0), one(2.0)), skewed),
    ]
    grid = torch.linspace(-400, 400, 400_001, dtype=torch.float64)
    with torch.no_grad():
        density = Mixture(parts, torch.zeros(3).double()).log_prob(grid[:, None]).exp()
    assert abs(torch.trapezoid(density, grid).item() - 1) < 1e-6


def test_guide_of_a_mixture_has_its_density():
    y = torch.tensor([0.5, 1.5]).double()
    parts = [
        Gaussian(torch.tensor([m]).double(), torch.ones(1).double())
        for m in (-1.0, 2.0)
    ]
    logits = torch.tensor([0.3, 0.7]).double().log()
    lvm = pair_of(mean_model, y, parts, logits)
    mu = vilvm.posterior(lvm, y, 20_000)["mu"]
    assert mu.dtype == torch.float64
    mean, variance = 0.3 * -1 + 0.7 * 2, 1 + 0.3 * 0.7 * 9
    assert abs(mu.mean().item() - mean) < 5 * (variance / 20_000) ** 0.5
    weights = vilvm.log_weights(lvm, y, num_samples=50)
    at = weights.latents["mu"].reshape(-1, 1)
    log_q = Mixture(parts, logits).log_prob(at)
    log_p = torch.distributions.Normal(0.0, 2.0).log_prob(at[:, 0])
    log_p = log_p + torch.distributions.Normal(at, 1.0).log_prob(y).sum(1)
    assert torch.allclose(weights.log_weight, log_p - log_q, rtol=1e-6, atol=1e-6)
