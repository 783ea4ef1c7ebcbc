"""The Bayesian mixture of normals, compared with brute-force sums and long Stan runs."""

import itertools
import math

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from torch.distributions import Dirichlet, HalfNormal, Normal

import vilvm
from tests.models.exact import (
    check_marginals,
    check_one_loss_and_gradient,
    posteriordb_or_skip,
)
from vilvm.models.gaussian_mixture import GaussianMixture, objective
from vilvm.training import one_cycle

THETA = {
    "pi": torch.tensor([0.3, 0.7]),
    "mu": torch.tensor([-1.0, 1.5]),
    "sigma": torch.tensor([0.8, 1.2]),
}


@pytest.fixture
def x():
    return torch.tensor([-2.0, 0.1, 0.4, 1.7, 2.5])


def nothing(x):
    """A guide that samples nothing, for a model with given parameters."""


def test_the_likelihood_is_the_sum_over_all_assignments(x):
    terms = THETA["pi"].log() + Normal(THETA["mu"], THETA["sigma"]).log_prob(x[:, None])
    paths = [
        terms[torch.arange(len(x)), list(z)].sum()
        for z in itertools.product(range(2), repeat=len(x))
    ]
    torch.testing.assert_close(
        GaussianMixture(2).log_likelihood(x, THETA).sum(),
        torch.stack(paths).logsumexp(0),
    )


@pytest.mark.parametrize("marginal", [False, True])
def test_the_joint_density_given_the_parameters(x, marginal):
    lvm = GaussianMixture(2, marginal=marginal)
    loss = (Trace_ELBO() if marginal else objective()).loss(
        poutine.condition(lvm.model, data=THETA), nothing, x
    )
    prior = (
        Dirichlet(torch.tensor([5.0, 5.0])).log_prob(THETA["pi"])
        + HalfNormal(2.0).log_prob(THETA["sigma"]).sum()
    )
    # the order selects one of 2! labellings
    prior = prior + Normal(0.0, 2.0).log_prob(THETA["mu"]).sum() + math.log(2)
    assert -loss == pytest.approx(
        (prior + lvm.log_likelihood(x, THETA).sum()).item(), rel=1e-5
    )


def test_both_forms_have_one_loss_and_one_gradient(x):
    check_one_loss_and_gradient(
        GaussianMixture(3), GaussianMixture(3, marginal=True), objective(), x
    )


@pytest.mark.parametrize("marginal", [False, True])
def test_log_weights_have_exact_datum_likelihoods(x, marginal):
    lvm = GaussianMixture(2, marginal=marginal)
    weights = vilvm.log_weights(lvm, x, 20)
    exact = lvm.log_likelihood(x, weights.latents).double()
    torch.testing.assert_close(weights.log_likelihood, exact, rtol=1e-5, atol=1e-5)
    prior = sum(weights.log_priors[n].double() for n in ("pi", "mu", "sigma"))
    torch.testing.assert_close(
        weights.log_weight,
        exact.sum(-1) + prior - weights.log_guide,
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.slow
def test_evidence_is_that_of_unlabelled_mixture():
    """Uses parameters drawn from the unordered prior, since labels do not matter to the data."""
    x, draws = torch.tensor([-1.5, 1.0, 1.3]), 100_000
    pi, mu = (
        Dirichlet(torch.full((2,), 5.0)).sample((draws,)),
        Normal(0.0, 2.0).sample((draws, 2)),
    )
    given = {"pi": pi, "mu": mu, "sigma": HalfNormal(2.0).sample((draws, 2))}
    lvm = GaussianMixture(2, marginal=True)
    naive = lvm.log_likelihood(x, given).sum(-1).exp().double()
    vilvm.fit(lvm, x, steps=300, **one_cycle(0.05, 300))
    with torch.no_grad():
        # wider than the posterior, so that the weights have a variance
        lvm.autoguide.scale_unconstrained.add_(2.0)
        weights = vilvm.log_weights(lvm, x, draws).log_weight.exp()
    error = math.sqrt(naive.var().item() / draws + weights.var().item() / draws)
    assert abs(naive.mean().item() - weights.mean().item()) < 5 * error
    assert (
        error < 0.05 * naive.mean().item()
    )  # so that a factor 2! would be significant


def test_responsibilities_and_states(x):
    lvm = GaussianMixture(2)
    r = lvm.responsibilities(x, THETA)
    joint = torch.stack(
        [
            p * torch.exp(Normal(m, s).log_prob(x))
            for p, m, s in zip(*THETA.values(), strict=True)
        ],
        -1,
    )
    torch.testing.assert_close(r, joint / joint.sum(-1, keepdim=True))
    assert torch.equal(lvm.states(x, THETA), joint.argmax(-1))
    drawn = lvm.states(x.repeat(4000), THETA, temperature=1).view(4000, len(x)).float()
    assert (
        (drawn.mean(0) - r[:, 1]).abs() < 5 * (r[:, 0] * r[:, 1] / 4000).sqrt()
    ).all()


def test_responsibilities_of_posterior_draws_and_of_the_median(x):
    lvm = GaussianMixture(3)
    r = lvm.responsibilities(x, vilvm.posterior(lvm, x, 7))
    assert r.shape == (7, 5, 3)
    torch.testing.assert_close(r.sum(-1), torch.ones(7, 5))
    torch.testing.assert_close(
        lvm.responsibilities(x), lvm.responsibilities(x, lvm.median())
    )


@pytest.mark.slow
def test_a_delta_guide_finds_the_maximum_a_posteriori():
    torch.manual_seed(0)
    x = torch.cat([Normal(-2.0, 1.0).sample((60,)), Normal(2.0, 0.5).sample((40,))])
    lvm = GaussianMixture(2, marginal=True, autoguide=AutoDelta)
    vilvm.fit(lvm, x, steps=800, **one_cycle(0.05, 800))
    given = {name: value.requires_grad_() for name, value in lvm.median().items()}
    loss = Trace_ELBO().differentiable_loss(
        poutine.condition(lvm.model, data=given), nothing, x
    )
    mu, sigma = torch.autograd.grad(loss, [given["mu"], given["sigma"]])
    # in units of the gradient of one datum, 1 / sigma
    assert (mu * given["sigma"]).abs().max() < 0.05
    assert (sigma * given["sigma"]).abs().max() < 0.05


def test_prior_draws_agree_in_both_forms():
    moments = []
    for marginal in (False, True):
        torch.manual_seed(int(marginal))
        drawn = vilvm.sample(
            GaussianMixture(2, marginal=marginal), 4000, like=torch.zeros(1)
        )["x"].flatten()
        moments.append((drawn.square().mean(), drawn.square().var() / 4000))
    (first, a), (second, b) = moments
    assert (first - second).abs() < 5 * (a + b).sqrt()
    exact = 4 + 4  # E mu² + E sigma²
    assert (first - exact).abs() < 5 * a.sqrt()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_components must be at least 2; got 1"):
        GaussianMixture(1)
    with pytest.raises(ValueError, match="must be positive"):
        GaussianMixture(2, scale=0.0)


@pytest.mark.slow
def test_the_posterior_of_posteriordb():
    reference = posteriordb_or_skip("low_dim_gauss_mix-low_dim_gauss_mix")
    x = reference.data["y"]
    lvm = GaussianMixture(2, marginal=True)
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    vilvm.fit(lvm, x, objective=elbo, steps=1500, **one_cycle(0.03, 1500))
    with torch.no_grad():
        drawn = vilvm.posterior(lvm, x, 20_000)
    ours = {"theta": drawn["pi"][:, 0]} | {
        f"{n}[{k + 1}]": drawn[n][:, k] for n in ("mu", "sigma") for k in range(2)
    }
    check_marginals(ours, reference)
