"""The importance-weighted bound: closed forms, factors, gradients, shared and unfit latents.

The statistical tests compare 11 numbers at |t| < 7 with at least 19 degrees of freedom, and fail
by chance about once in 50,000 runs.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO

import vilvm
from tests.objectives.linear_gaussian import (
    Scaled,
    SharedMean,
    Subsampled,
    factor_analysis,
    gradient,
    gradients,
    t_scores,
    two_layers,
)
from vilvm._runtime.random import seeded
from vilvm.lvm import ContractError
from vilvm.objectives import IWAE, DReG


def test_bound_rises_with_k_below_the_evidence():
    lvm, x = factor_analysis()
    exact = lvm.exact_log_evidence(x).sum().item()
    copies, means, errors = x.repeat(50, 1), [], []
    for k in (1, 4, 16, 64):
        objective = IWAE(k, max_plate_nesting=1 + (k > 1))
        with seeded(k):
            losses = [objective.loss(lvm.model, lvm.guide, copies) for _ in range(20)]
        values = -torch.tensor(losses) / 50
        means.append(values.mean().item())
        errors.append(values.std().item() / 20**0.5)
    for i in range(3):
        assert means[i + 1] - means[i] > 7 * math.hypot(*errors[i : i + 2])
    assert means[-1] < exact + 7 * errors[-1]
    assert exact - means[-1] < 0.25 * (exact - means[0])


def test_loss_estimates_the_bound_of_log_weights():
    lvm, x = factor_analysis()
    with seeded(1):
        w = vilvm.log_weights(lvm, x, 8 * 300, validate=False).log_weight.detach()
    bounds = (w.reshape(300, 8, -1).logsumexp(1) - math.log(8)).sum(1)
    copies = x.repeat(10, 1)
    objective = IWAE(8, max_plate_nesting=2)
    with seeded(2):
        losses = [objective.loss(lvm.model, lvm.guide, copies) for _ in range(20)]
    assert abs(t_scores(-torch.tensor(losses) / 10, bounds)) < 7


@pytest.mark.parametrize("vectorised", [True, False])
@pytest.mark.parametrize("objective", [IWAE, DReG])
@pytest.mark.parametrize("scale", [0.05, torch.linspace(0.1, 2, 20)])
def test_scale_multiplies_the_exact_evidence(objective, scale, vectorised):
    lvm, x = factor_analysis(exact=True)
    scaled = Scaled(lvm, scale)
    loss = objective(7, vectorised).loss(scaled.model, scaled.guide, x)
    expected = (scale * lvm.exact_log_evidence(x)).sum()
    assert loss == pytest.approx(-expected.item(), rel=1e-6)


def test_batches_estimate_the_evidence_of_all_data():
    lvm, x = factor_analysis(exact=True)
    pair = Subsampled(lvm, size=20)
    losses = [IWAE(7).loss(pair.model, pair.guide, part) for part in x.split(5)]
    expected = -lvm.exact_log_evidence(x).sum().item()
    assert sum(losses) / 4 == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("vectorised", [True, False])
def test_random_subsample_is_one_for_all_particles(vectorised):
    lvm, x = factor_analysis(exact=True)

    def model(x):
        with pyro.plate("data", 20, subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(lvm.origin, 1.0).to_event(1))
            likelihood = dist.Normal(z @ lvm.W.T + lvm.b, lvm.psi.sqrt()).to_event(1)
            pyro.sample("x", likelihood, obs=x[index])

    def guide(x):
        with pyro.plate("data", 20, subsample_size=4) as index:
            mean = (x[index] - lvm.b) @ lvm.V.T
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=lvm.L))

    evidence = lvm.exact_log_evidence(x)
    objective = IWAE(7, vectorised)
    first, second = (objective.loss(model, guide, x) / -5 for _ in range(2))
    sums = torch.combinations(evidence, 4).sum(-1)
    assert (sums - first).abs().min() < 1e-6
    assert (sums - second).abs().min() < 1e-6
    assert first != second


def test_equals_renyi_without_factors():
    lvm, x = factor_analysis()
    renyi = RenyiELBO(0, 9, vectorize_particles=True, max_plate_nesting=1)
    ours = IWAE(9, max_plate_nesting=1)
    losses = []
    for objective in (renyi, ours):
        with seeded(4):
            losses.append(objective.loss(lvm.model, lvm.guide, x))
    assert losses[0] == pytest.approx(losses[1])


def test_one_particle_is_the_elbo():
    lvm, x = two_layers()
    found = []
    for objective in (Trace_ELBO(), IWAE(1, max_plate_nesting=1)):
        with seeded(0):
            found.append(gradient(objective, lvm, x))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("make", [factor_analysis, two_layers])
def test_gradient_equals_finite_differences(make):
    lvm, x = make()
    objective = IWAE(5, max_plate_nesting=2)

    def loss():
        with seeded(0):
            return objective.loss(lvm.model, lvm.guide, x)

    with seeded(0):
        found = gradient(objective, lvm, x)[1]
    expected = []
    for p in lvm.parameters():
        for i in range(p.numel()):
            flat = p.data.view(-1)
            old, values = flat[i].item(), []
            for step in (1e-5, -1e-5):
                flat[i] = old + step
                values.append(loss())
            flat[i] = old
            expected.append((values[0] - values[1]) / 2e-5)
    torch.testing.assert_close(found, found.new_tensor(expected), rtol=1e-5, atol=1e-5)


# Pairs of other kinds
# --------------------------------------------------------------------------------------------


def test_shared_latent_has_one_joint_weight():
    lvm, x = SharedMean(), torch.tensor([0.5, 1.0, -0.2])
    with seeded(1):
        loss = IWAE(6, max_plate_nesting=2).loss(lvm.model, lvm.guide, x)
    with seeded(1):
        q = torch.distributions.Normal(0.3, 0.4)
        mu = (0.3 + 0.4 * torch.randn(6, 1)).double()
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(mu)
    likelihood = torch.distributions.Normal(mu, 1.0).log_prob(x).sum(-1, keepdim=True)
    log_w = likelihood + prior - q.log_prob(mu)
    assert loss == pytest.approx(math.log(6) - log_w.logsumexp(0).item(), rel=1e-5)


def test_shared_latent_under_subsampling_is_refused():
    lvm = SharedMean(size=30)
    with pytest.raises(ContractError, match=r"data share a latent.*no bound"):
        IWAE(3).loss(lvm.model, lvm.guide, torch.zeros(3))


def test_factor_on_one_site_is_refused():
    lvm, x = factor_analysis()

    def model(x):
        with pyro.poutine.scale(scale=torch.tensor(0.5)):
            lvm.model(x)

    with pytest.raises(ContractError, match="different factors on 'z' and 'z'"):
        IWAE(3).loss(model, lvm.guide, x)


def test_draws_without_reparameterisation_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(x.sigmoid()))

    with pytest.raises(ContractError, match=r"'z' from a Bernoulli.*not reparam"):
        IWAE(3).loss(model, guide, torch.zeros(3))


def test_missing_latent_is_refused():
    lvm, x = two_layers()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z1", dist.Normal(x, 1.0))

    with pytest.raises(ContractError, match="guide does not sample latent 'z2'"):
        IWAE(3).loss(lvm.model, guide, x)


def test_plain_svi_trains():
    lvm, x = two_layers()
    before = IWAE(50).loss(lvm.model, lvm.guide, x)
    svi = SVI(lvm.model, lvm.guide, pyro.optim.Adam({"lr": 0.02}), IWAE(5))
    for _ in range(40):
        svi.step(x)
    assert IWAE(50).loss(lvm.model, lvm.guide, x) < before
    assert svi.evaluate_loss(x) > 0


def test_particles_one_by_one_have_the_same_gradient():
    lvm, x = two_layers()
    one = gradients(IWAE(4, False, 1), lvm, x)
    at_once = gradients(IWAE(4, True, 2), lvm, x, seed=1)
    assert t_scores(one, at_once).abs().max() < 7
